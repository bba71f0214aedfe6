# SPDX-License-Identifier: Apache-2.0
"""MAD and BKL against independent implementations and against counterfactuals that lead nowhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import mean_absolute_error

from medcf.metrics.confidence import BoundedKL, MeanAbsoluteDifference


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    before, after = (3 * torch.randn(40, 3, generator=generator) for _ in range(2))
    return before, after


def test_mad_is_the_mean_absolute_error_of_the_target_probability(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    before, after = logits
    enters = before.argmax(1).numpy() != 2
    metric = MeanAbsoluteDifference(target=2)
    metric(after[:15], before[:15])
    metric(after[15:], before[15:])
    expected = mean_absolute_error(
        softmax(before.numpy(), axis=1)[enters, 2], softmax(after.numpy(), axis=1)[enters, 2]
    )
    assert 0 < enters.sum() < 40
    assert metric.aggregate() == pytest.approx(expected, rel=1e-5)
    assert metric.counts().entered == enters.sum()


def test_bkl_is_the_remapped_divergence_from_the_one_hot_label(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    before, after = logits
    one_hot = np.array([0.0, 0.0, 1.0])
    rows = [softmax(row) for row, first in zip(after.numpy(), before.numpy(), strict=True) if first.argmax() != 2]
    metric = BoundedKL(target=2)
    metric(after, before)
    assert metric.aggregate() == pytest.approx(np.mean([1 - np.exp(-entropy(one_hot, row)) for row in rows]), rel=1e-5)


def test_the_unchanged_input_gains_nothing_and_misses_much() -> None:
    before = torch.tensor([[2.0, 0.0], [3.0, 0.0]])
    mad, bkl = MeanAbsoluteDifference(), BoundedKL()
    mad(before, before)
    bkl(before, before)
    assert mad.aggregate() == 0
    assert bkl.aggregate() > 0.85


def test_mad_praises_what_leads_away_from_the_target_but_its_signed_mean_and_bkl_do_not() -> None:
    before = torch.tensor([[0.55, 0.45]]).log()
    away, towards = torch.tensor([[0.95, 0.05]]).log(), torch.tensor([[0.15, 0.85]]).log()
    figures = {}
    for name, after in (("away", away), ("towards", towards)):
        mad, bkl = MeanAbsoluteDifference(), BoundedKL()
        mad(after, before)
        bkl(after, before)
        figures[name] = (mad.aggregate(), mad.mean_difference, bkl.aggregate())
    assert figures["away"] == pytest.approx((0.4, -0.4, 0.95))
    assert figures["towards"] == pytest.approx((0.4, 0.4, 0.15))


def test_an_almost_certain_counterfactual_keeps_its_digits() -> None:
    metric = BoundedKL()
    metric(torch.tensor([[0.0, 20.0]]), torch.tensor([[1.0, 0.0]]))
    assert metric.aggregate() == pytest.approx(1 / (1 + math.exp(20)), rel=1e-5)


def test_predictions_that_are_not_finite_are_left_out_by_name() -> None:
    nan, good = [math.nan, 0.0], [1.0, 0.0]
    metric = MeanAbsoluteDifference()
    metric(torch.tensor([good, nan, [0.0, 1.0], good]), torch.tensor([nan, good, [0.0, 1.0], good]))
    assert metric.aggregate() == 0
    assert metric.left_out_cases() == {
        "the input's prediction is not finite": [0],
        "the input is already of the target class": [2],
        "the counterfactual's prediction is not finite": [1],
    }
