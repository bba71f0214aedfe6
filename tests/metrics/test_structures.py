# SPDX-License-Identifier: Apache-2.0
"""Structures against the truth, by scikit-learn: Dice, what absence counts, and what was invented or lost."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from medcf.metrics.structures import StructureChanges, StructureDice


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


def presence_maps(present: torch.Tensor, label: int = 3) -> torch.Tensor:
    """Label maps (N, 1, 8, 8) with ``label`` in a square where ``present`` says so."""
    labels = torch.zeros(len(present), 1, 8, 8, dtype=torch.long)
    labels[present, :, 2:6, 2:6] = label
    return labels


def test_invented_and_lost_structures_are_scikit_learns_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    found, true = (torch.rand(50, generator=generator) < share for share in (0.4, 0.6))
    metric = StructureChanges({"cavum": 3, "fossa": 4})
    for part in torch.arange(50).split(16):
        metric(presence_maps(found[part]), presence_maps(true[part]))
    (absent, invented), (lost, kept) = confusion_matrix(true, found)
    rates = metric.aggregate()["cavum"]
    assert rates["invented"] == pytest.approx(invented / (invented + absent))
    assert rates["lost"] == pytest.approx(lost / (lost + kept))
    assert rates["kept"] == pytest.approx(1 - rates["lost"])
    assert rates["right"] == pytest.approx((kept + absent) / 50)
    for rate, (low, high) in metric.interval(groups=[str(case // 2) for case in range(50)])["cavum"].items():
        assert low < rates[rate] < high
    assert metric.counts().entered == 50


def test_a_rate_that_concerns_no_case_is_nan_and_a_small_find_is_nothing() -> None:
    labels = presence_maps(torch.tensor([True, True]))
    metric = StructureChanges({"cavum": 3, "fossa": 4})
    metric(labels, labels)
    rates = metric.aggregate()
    assert torch.tensor([rates["cavum"]["invented"], rates["fossa"]["lost"]]).isnan().all()
    assert rates["cavum"]["right"] == rates["fossa"]["right"] == 1
    strict = StructureChanges({"cavum": 3}, min_pixels=17)
    strict(labels, labels)
    assert not strict.presence().any()
    with pytest.raises(ValueError, match="truth's labels"):
        strict(labels)
