# SPDX-License-Identifier: Apache-2.0
"""Validity metrics against hand-made cases and deliberately bad counterfactuals."""

from __future__ import annotations

import math

import pytest
import torch

from medcf.metrics.quality import MeanQualityDifference
from medcf.metrics.robustness import flip_survival
from medcf.metrics.validity import FlipRatio

NSP, SP = [3.0, 0.0], [0.0, 3.0]


def test_flip_ratio_counts_only_inputs_of_another_class_over_batches() -> None:
    metric = FlipRatio(target=1)
    metric(torch.tensor([SP, NSP]), torch.tensor([NSP, NSP]))
    metric(torch.tensor([SP, SP]), torch.tensor([NSP, SP]))
    assert metric.aggregate() == pytest.approx(2 / 3)
    assert (metric.entered, metric.left_out) == (3, 1)


def test_flip_ratio_of_the_unchanged_input_is_zero() -> None:
    metric = FlipRatio(target=1)
    logits = torch.tensor([NSP, NSP, SP])
    metric(logits, logits)
    assert metric.aggregate() == 0


def test_flip_ratio_without_any_input_is_not_a_number() -> None:
    metric = FlipRatio(target=1)
    metric(torch.tensor([SP]), torch.tensor([SP]))
    assert math.isnan(metric.aggregate())


def test_quality_difference_ignores_good_inputs_but_divides_by_all() -> None:
    metric = MeanQualityDifference()
    metric(torch.tensor([0.8, 0.3, 0.1]), torch.tensor([0.2, 0.4, 0.9]))
    assert metric.aggregate() == pytest.approx((0.6 - 0.1) / 3)
    assert metric.mean_difference == pytest.approx((0.6 - 0.1 - 0.8) / 3)


def test_a_flip_that_lives_on_a_checkerboard_does_not_survive_blur() -> None:
    grid = torch.arange(32)
    checker = ((grid[:, None] + grid[None]) % 2 * 2.0 - 1).expand(1, 1, 32, 32)

    def classifier(images: torch.Tensor) -> torch.Tensor:
        score = (images * checker).mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(score, 0.04), score], dim=1)

    adversarial = 0.05 * checker
    honest = 0.9 * checker
    kept = flip_survival(classifier, torch.cat([adversarial, honest]), blur_sigma=0.5)
    assert kept["blur"].tolist() == [False, True]
    assert kept["noise"].tolist() == [True, True]
    assert kept["all"].tolist() == [False, True]
