# SPDX-License-Identifier: Apache-2.0
"""Dice of structures against scikit-learn, and what absence counts."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score

from medcf.metrics.structures import StructureDice


def test_dice_equals_scikit_learns_f1_score() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, truth = (torch.randint(0, 4, (1, 1, 12, 10), generator=generator) for _ in range(2))
    metric = StructureDice({"thalami": 2, "cavum": 3})
    metric(pred, truth)
    for name, label in metric.structures.items():
        expected = f1_score((truth == label).flatten(), (pred == label).flatten())
        assert metric.aggregate()[name] == pytest.approx(expected)


def test_an_absent_structure_is_right_when_nothing_is_found_and_wrong_when_something_is() -> None:
    truth = torch.zeros(2, 1, 8, 8, dtype=torch.long)
    pred = truth.clone()
    pred[1, 0, :2, :2] = 4
    metric = StructureDice({"fossa": 4})
    assert metric(pred, truth)[:, 0].tolist() == [1, 0]
    assert StructureDice({"fossa": 4}, min_pixels=5)(pred, truth)[:, 0].tolist() == [1, 1]


def test_the_mean_runs_over_cases_of_all_batches() -> None:
    truth = torch.full((1, 1, 4, 4), 2)
    metric = StructureDice({"thalami": 2})
    metric(truth, truth)
    metric(torch.zeros_like(truth), truth)
    assert metric.aggregate() == {"thalami": 0.5}
