# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals that are bad on purpose, and what each metric of ground truth says of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from medcf.metrics.biometry import BiometryShift
from medcf.metrics.localization import ChangeAUPRC, ChangeIoU, PointingGame
from medcf.metrics.structures import StructureChanges
from medcf.metrics.truth import RelativeTruthError, TruthError, TruthSimilarity, TruthSimilarityGain
from medcf.phantoms import PairedPhantomDataset
from medcf.phantoms.head.change import TrueChangeDataset

COUNT = 5
BAD = ("unchanged", "noise", "another subject", "mirrored")


@cache
def cases() -> dict[str, Tensor]:
    pairs = PairedPhantomDataset(count=COUNT, progress=False)
    changes = TrueChangeDataset(count=COUNT, progress=False)
    data = {key: torch.stack([item[key] for item in pairs]) for key in pairs[0] if torch.is_tensor(pairs[0][key])}
    return data | {key: torch.stack([item[key] for item in changes]) for key in ("appearance", "structure")}


def counterfactual(name: str, key: str = "image") -> Tensor:
    """Images, or their labels, of a counterfactual that is right ("truth") or bad on purpose."""
    given, true = cases()[key], cases()[f"{key}_true"]
    noise = torch.rand(given.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if key == "segmentation":
        noise = ((noise + 1) * 2.5).long()
    made = {"truth": true, "unchanged": given, "noise": noise, "another subject": true.roll(1, 0)}
    return made[name] if name in made else true.flip(-1)


@pytest.mark.parametrize("kind", ["appearance", "structure"])
@pytest.mark.parametrize("metric_class", [ChangeAUPRC, ChangeIoU, PointingGame])
def test_the_true_image_is_localized_best_and_an_unchanged_one_is_chance(metric_class: Any, kind: str) -> None:
    scores = {}
    for name in ("truth", *BAD):
        metric = metric_class()
        metric((counterfactual(name) - cases()["image"]).abs(), cases()[kind])
        scores[name] = metric.aggregate()
    assert scores["unchanged"] == pytest.approx(metric.chance())
    assert scores["truth"] > 2 * metric.chance()
    assert all(scores["truth"] > scores[name] for name in BAD)


@pytest.mark.parametrize("name", BAD)
def test_every_bad_counterfactual_is_farther_from_the_truth_than_another_rendering(name: str) -> None:
    truth, image = cases()["image_true"], cases()["image"]
    for metric_class in (TruthError, RelativeTruthError, TruthSimilarity, TruthSimilarityGain):
        bad, good = metric_class(), metric_class()
        bad(counterfactual(name), truth, image=image)
        good((0.7 * truth + 0.3 * image), truth, image=image)
        better = good.aggregate() > bad.aggregate()
        assert better == metric_class.higher_is_better


def test_unchanged_gains_nothing_and_strangers_and_noise_are_worse_than_doing_nothing() -> None:
    truth, image = cases()["image_true"], cases()["image"]
    for name in BAD:
        error, gain = RelativeTruthError(), TruthSimilarityGain()
        error(counterfactual(name), truth, image=image)
        gain(counterfactual(name), truth, image=image)
        if name == "unchanged":
            assert (error.aggregate(), gain.aggregate()) == (1, 0)
        else:
            assert error.aggregate() > 1.2
            assert gain.aggregate() < 0


def test_only_another_subject_has_another_head_and_noise_has_none() -> None:
    shifts = {}
    for name in ("truth", *BAD):
        metric = BiometryShift(1.75)
        metric(counterfactual(name, "segmentation"), cases()["segmentation_true"])
        shifts[name] = metric
    assert shifts["truth"].aggregate() == 0
    assert shifts["another subject"].aggregate() > 20
    assert shifts["noise"].counts().entered == 0
    assert shifts["mirrored"].aggregate() < 0.5  # a mirrored head is as large; its pixels are what is wrong


def test_structures_of_unchanged_inputs_and_noise_are_wrong() -> None:
    labels = {"thalami": 2, "cavum": 3, "fossa": 4}
    right = {}
    for name in ("truth", "unchanged", "noise"):
        metric = StructureChanges(labels)
        metric(counterfactual(name, "segmentation"), cases()["segmentation_true"])
        right[name] = metric.aggregate()
    assert all(rates["right"] == 1 for rates in right["truth"].values())
    assert right["noise"]["fossa"]["invented"] == 1
    assert right["unchanged"]["fossa"]["invented"] > 0.3
    assert right["unchanged"]["cavum"]["lost"] > 0.3
