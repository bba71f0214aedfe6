# SPDX-License-Identifier: Apache-2.0
"""Metrics with a value per case: who enters, and what the interval is about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medcf.metrics.base import CaseMetric, Counts
from medcf.metrics.bootstrap import bootstrap_interval


class Given(CaseMetric):
    """The values it is called with."""

    higher_is_better = True
    left_out_reason = "no head on the image"

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        return y_pred


@pytest.fixture
def metric() -> Given:
    metric = Given()
    metric(torch.tensor([0.0, math.nan, 1.0]))
    metric(torch.tensor([5.0, math.nan]))
    return metric


def test_mean_and_counts_are_of_the_cases_that_entered(metric: Given) -> None:
    assert metric.aggregate() == 2
    assert metric.counts() == Counts(3, {"no head on the image": 2})
    assert torch.isnan(metric.per_case()).tolist() == [False, True, False, False, True]


def test_interval_draws_the_cases_that_entered_by_their_own_subjects(metric: Given) -> None:
    metric(torch.tensor([2.0, math.nan, 3.0, 9.0]))
    entered, subjects = [0.0, 1.0, 5.0, 2.0, 3.0, 9.0], ["a", "b", "b", "c", "d", "e"]
    expected = bootstrap_interval(np.mean, entered, groups=subjects)
    assert metric.interval(groups=["a", "x", "b", "b", "x", "c", "y", "d", "e"]) == expected
    assert expected != bootstrap_interval(np.mean, entered)


def test_a_mean_over_four_subjects_has_no_interval_whatever_the_number_of_cases(metric: Given) -> None:
    metric(torch.arange(20.0))
    assert all(math.isnan(end) for end in metric.interval(groups=[case % 4 for case in range(25)]))
    assert all(math.isfinite(end) for end in metric.interval(groups=[case % 5 for case in range(25)]))


def test_nobody_entered_is_not_a_number() -> None:
    metric = Given()
    metric(torch.full((3,), math.nan))
    assert math.isnan(metric.aggregate())
    assert all(math.isnan(end) for end in metric.interval())
    assert metric.counts().entered == 0


def test_reset_forgets_and_an_unused_metric_says_so(metric: Given) -> None:
    metric.reset()
    with pytest.raises(ValueError, match="Given was aggregated before it saw a case"):
        metric.aggregate()


def test_groups_of_another_length_are_refused(metric: Given) -> None:
    with pytest.raises(ValueError, match="groups has 2 cases, but the metric has 5"):
        metric.interval(groups=[1, 2])
