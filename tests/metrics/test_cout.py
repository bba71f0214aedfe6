# SPDX-License-Identifier: Apache-2.0
"""COUT against closed forms of a classifier that is linear in the pixels, and against a pixel-by-pixel loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from medcf.metrics.cout import COUT, transition_curves


class LinearProbability(nn.Module):
    """The probability of class 1 is the weighted mean of the pixels, which lie in [0, 1]."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight / weight.sum()
        self.calls: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(images))
        share = (images * self.weight).flatten(1).sum(1).clamp(1e-7, 1 - 1e-7)
        return torch.stack([1 - share, share], dim=1).log()


def cout_of(classifier: nn.Module, counterfactual: torch.Tensor, image: torch.Tensor, **options: int) -> float:
    metric = COUT(classifier, **options)
    metric(counterfactual, image)
    return metric.aggregate()


def test_evenly_spread_evidence_scores_zero() -> None:
    image = torch.zeros(1, 1, 10, 10)
    assert cout_of(LinearProbability(torch.ones(1, 10, 10)), image + 1, image) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("count", [2, 10, 50])
def test_evidence_in_the_most_changed_pixels_scores_what_the_triangle_says(count: int) -> None:
    weight = torch.zeros(100)
    weight[:count] = 1
    image = torch.zeros(1, 1, 10, 10)
    counterfactual = torch.where(weight > 0, 1.0, 0.5).view_as(image)  # all change, the decisive ones most
    score = cout_of(LinearProbability(weight.view(1, 10, 10)), counterfactual, image, num_steps=100)
    # The target's confidence rises to 1 over the first count / 100 and stays: 1 - count / 200, and its mirror.
    assert score == pytest.approx(1 - count / 100, abs=1e-5)


def test_evidence_in_the_least_changed_pixels_scores_below_zero() -> None:
    weight = torch.zeros(100)
    weight[90:] = 1
    image = torch.zeros(1, 1, 10, 10)
    counterfactual = torch.where(weight > 0, 0.9, 1.0).view_as(image)
    score = cout_of(LinearProbability(weight.view(1, 10, 10)), counterfactual, image, num_steps=100)
    assert score == pytest.approx((0.9 * 0.1 / 2) - (0.9 + 0.1 * (1 - 0.45)), abs=1e-5)


def by_hand(
    weight: np.ndarray, counterfactual: np.ndarray, image: np.ndarray, counts: list[int]
) -> tuple[float, list[float]]:
    """One case (C, *spatial), pixel by pixel."""
    current, flat = image.reshape(len(image), -1).copy(), counterfactual.reshape(len(image), -1)
    order = sorted(range(flat.shape[1]), key=lambda i: -np.abs(flat[:, i] - current[:, i]).sum())
    curve = []
    for low, high in zip([0, *counts], counts, strict=False):
        for i in order[low:high]:
            current[:, i] = flat[:, i]
        curve.append(float((current * weight.reshape(current.shape)).sum() / weight.sum()))
    fraction = np.array(counts) / flat.shape[1]
    return float(np.trapezoid(2 * np.array(curve) - 1, fraction)), curve


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 5, 5), (2, 3, 2, 4)])
def test_any_channels_and_dimensions_agree_with_a_pixel_by_pixel_loop(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.rand(shape, generator=generator)
    image = 0.6 * torch.rand(3, *shape, generator=generator)
    counterfactual = torch.rand(3, *shape, generator=generator)  # some pixels rise, some fall
    classifier = LinearProbability(weight)
    pixels = math.prod(shape[1:])
    counts = [pixels * t // 7 for t in range(8)]
    metric = COUT(classifier, num_steps=7, batch_size=5)
    metric(counterfactual, image)
    curves = transition_curves(classifier, counterfactual, image, num_steps=7, batch_size=100)
    for case in range(3):
        score, curve = by_hand(weight.numpy(), counterfactual[case].numpy(), image[case].numpy(), counts)
        assert metric.per_case()[case].item() == pytest.approx(score, abs=1e-5)
        assert curves.target[case].tolist() == pytest.approx(curve, abs=1e-5)
    assert max(classifier.calls[:-1]) <= 5


def test_the_last_partial_step_is_exact() -> None:
    image = torch.zeros(1, 1, 1, 7)
    classifier = LinearProbability(torch.ones(1, 1, 7))
    curves = transition_curves(classifier, image + 1, image, num_steps=3)
    assert curves.fraction.tolist() == pytest.approx([0, 2 / 7, 4 / 7, 1])
    assert curves.target[0].tolist() == pytest.approx([0, 2 / 7, 4 / 7, 1], abs=1e-6)
    assert transition_curves(classifier, image + 1, image, num_steps=50).fraction.shape == (8,)


def test_the_unchanged_input_has_the_value_of_its_constant_curves() -> None:
    image = torch.full((1, 1, 6, 6), 0.2)
    assert cout_of(LinearProbability(torch.ones(1, 6, 6)), image, image) == pytest.approx(0.2 - 0.8, abs=1e-5)


def test_steps_that_change_no_pixel_cost_no_evaluation_and_change_no_value() -> None:
    image = torch.zeros(2, 1, 10, 10)
    counterfactual = image.clone()
    counterfactual[0, 0, 2:4, :3] = 1  # 6 of 100 pixels, the second case none
    weight = torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(5))
    classifier = LinearProbability(weight)
    curves = transition_curves(classifier, counterfactual, image, num_steps=50)
    assert sum(classifier.calls) == (1 + 3) + 1
    counts = list(range(0, 101, 2))
    score, curve = by_hand(weight.numpy(), counterfactual[0].numpy(), image[0].numpy(), counts)
    assert curves.target[0].tolist() == pytest.approx(curve, abs=1e-6)
    assert curves.cout[0].item() == pytest.approx(score, abs=1e-5)
    assert curves.target[1].unique().numel() == 1


def test_an_attack_on_few_pixels_scores_well_and_one_spread_over_all_does_not() -> None:
    def classifier(images: torch.Tensor) -> torch.Tensor:
        score = 40 * images.mean(dim=(1, 2, 3)) - 1
        return torch.stack([-score, score], dim=1)

    image = torch.zeros(1, 1, 16, 16)
    few = image.clone()
    few[0, 0, 0, :13] = 1
    spread = image + 13 / 256
    scores = [cout_of(classifier, attack, image) for attack in (few, spread)]
    assert scores[0] > 0.6
    assert abs(scores[1]) < 0.1


def test_inputs_of_the_target_class_and_broken_counterfactuals_are_left_out() -> None:
    image = torch.stack([torch.full((1, 4, 4), value) for value in (0.2, 0.9, 0.2)])
    counterfactual = torch.ones_like(image)
    counterfactual[2, 0, 0, 0] = math.nan
    metric = COUT(LinearProbability(torch.ones(1, 4, 4)))
    metric(counterfactual, image)
    assert metric.counts().entered == 1
    assert metric.left_out_cases() == {
        "the input is already of the target class": [1],
        "the counterfactual's prediction is not finite": [2],
    }


def test_with_three_classes_the_source_is_the_class_of_the_input() -> None:
    def classifier(images: torch.Tensor) -> torch.Tensor:
        level = images.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        half = torch.full_like(level, 1e-9)
        return torch.stack([half, level, 1 - level], dim=1).log()

    image = torch.zeros(1, 1, 8, 8)
    curves = transition_curves(classifier, image + 1, image, target=1)
    assert curves.source[0, 0] > 0.99
    assert curves.source[0, -1] < 0.01


def test_a_classifier_in_training_mode_is_asked_in_evaluation_mode_and_given_back_as_it_was() -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2)).train()
    image, counterfactual = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4)
    before = classifier[1].running_mean.clone()
    first, second = (transition_curves(classifier, counterfactual, image).target for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, classifier[1].running_mean)
    assert classifier.training


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        transition_curves(nn.Flatten(), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
