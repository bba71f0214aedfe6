# SPDX-License-Identifier: Apache-2.0
"""Who enters a figure, and intervals that stay honest where all cases agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from medcf.metrics.bootstrap import bootstrap_interval
from medcf.metrics.exclusions import ExclusionMetric, calls_target, check_logits, summarize


class Halves(ExclusionMetric):
    """Half of a number; negative numbers and those above ten do not enter."""

    higher_is_better = True
    reasons = ("negative", "above ten", "never")

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: object) -> torch.Tensor:
        never = torch.zeros(len(y_pred), dtype=torch.bool)
        return self.entry(y_pred / 2, (y_pred < 0) | (y_pred > 99), y_pred > 10, never)


def test_every_case_left_out_is_named_with_its_first_reason_over_batches() -> None:
    metric = Halves()
    metric(torch.tensor([4.0, -1.0, 11.0]))
    metric(torch.tensor([100.0, 8.0]))
    assert metric.aggregate() == 3
    assert metric.left_out_cases() == {"negative": [1, 3], "above ten": [2]}
    assert metric.counts().entered == 2
    assert metric.counts().left_out == {"negative": 2, "above ten": 1}
    assert metric.per_case().isnan().tolist() == [False, True, True, True, False]


def test_without_any_case_that_enters_all_is_nan_and_counted() -> None:
    metric = Halves()
    metric(torch.tensor([-1.0]))
    assert math.isnan(metric.aggregate())
    assert all(math.isnan(end) for end in metric.interval())
    assert metric.counts().entered == 0


def test_aggregating_before_any_case_says_so() -> None:
    with pytest.raises(ValueError, match="Halves was aggregated before it saw a case"):
        Halves().counts()


def test_the_interval_resamples_subjects_and_forgets_those_left_out() -> None:
    metric = Halves()
    values, subjects = [2.0] * 9 + [-5.0] + [4.0] * 9, [*"aaabbbccc", "x", *"dddeeefff"]
    metric(torch.tensor(values))
    low, high = metric.interval(groups=subjects)
    kept = [name for name in subjects if name != "x"]
    assert (low, high) == bootstrap_interval(np.mean, [1.0] * 9 + [2.0] * 9, groups=kept)
    alone = metric.interval()
    assert low < alone[0] < 1.5 < alone[1] < high  # six subjects tell less than 18 cases would
    with pytest.raises(ValueError, match="has 2 cases"):
        metric.interval(groups=["a", "b"])


@pytest.mark.parametrize(("hits", "of"), [(32, 32), (64, 64), (0, 9), (1, 1)])
def test_a_share_of_all_or_none_has_the_exact_binomial_interval(hits: int, of: int) -> None:
    values = torch.cat([torch.ones(hits), torch.zeros(of - hits)])
    expected = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="exact")
    assert summarize(values, share=True).interval == pytest.approx((expected.low, expected.high))


def test_the_exact_interval_counts_subjects_where_they_are_named() -> None:
    one_each = summarize(torch.ones(4), share=True, groups=[1, 2, 3, 4])
    two_each = summarize(torch.ones(4), share=True, groups=[1, 1, 2, 2])
    assert two_each.interval[0] < one_each.interval[0] < 1


def test_logits_that_are_not_finite_are_never_the_target() -> None:
    logits = torch.tensor([[0.0, math.nan], [0.0, math.inf], [math.nan, 1.0], [0.0, 1.0]])
    assert calls_target(logits, 1).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("after", "before", "target", "message"),
    [
        (torch.zeros(2, 2), None, 1, "logits of the inputs as y"),
        (torch.zeros(2, 1), torch.zeros(2, 1), 0, "torch.stack"),
        (torch.zeros(2, 2), torch.zeros(3, 2), 1, "K >= 2, got"),
        (torch.zeros(2, 2), torch.zeros(2, 2), 2, "target=2 is not one of the 2 classes"),
    ],
)
def test_wrong_logits_are_refused_with_the_remedy(
    after: torch.Tensor, before: torch.Tensor | None, target: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_logits("FlipRatio", target, after, before)
