# SPDX-License-Identifier: Apache-2.0
"""Pairs of both states with the subject's parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.phantoms.brain.brain_mri import BrainMRI
from medcf.phantoms.brain.identities import BRAIN_PARAMETERS, BrainIdentityDataset, brain_parameters

SMALL = {"size": (16, 16, 16), "spacing": 2.0, "progress": False}


def test_a_pair_is_one_subject_in_both_classes_with_its_parameters(tmp_path):
    pairs = BrainIdentityDataset("val", 4, cache_dir=tmp_path, **SMALL)
    for index, item in enumerate(pairs):
        assert int(item["target"]) == 1 - int(item["label"])
        assert (float(item["severity_true"]) > 0.45) == bool(item["target"])
        subject = BrainMRI(int(item["subject"]))
        np.testing.assert_allclose(item["parameters"], brain_parameters(subject))
        assert item["parameters"][3] == pytest.approx(subject.shape.sulcus_depth)
        assert not torch.equal(item["image"], item["image_true"])
        torch.testing.assert_close(pairs[index]["image"], item["image"])
    assert pairs.mean == pytest.approx(pairs.parameters.mean(0).tolist())
    assert pairs.std == pytest.approx(pairs.parameters.std(0).tolist())
    assert min(pairs.std) > 0


def test_the_pairs_are_rendered_once(tmp_path, monkeypatch):
    first = BrainIdentityDataset("val", 2, cache_dir=tmp_path, **SMALL)
    monkeypatch.setattr(BrainMRI, "render", None)
    again = BrainIdentityDataset("val", 2, ["nuclei"], cache_dir=tmp_path, **SMALL)
    torch.testing.assert_close(again[1]["image_true"], first[1]["image_true"])
    assert again[1]["parameters"] == first[1]["parameters"][list(BRAIN_PARAMETERS).index("nuclei")]


def test_the_transform_sees_the_whole_item():
    pairs = BrainIdentityDataset("val", 1, transform=lambda item: sorted(item), **SMALL)
    assert {"image", "image_true", "parameters", "target"} <= set(pairs[0])


def test_unknown_parameters_are_named():
    with pytest.raises(ValueError, match=r"'weight'.*choose from width"):
        brain_parameters(BrainMRI(1), ["weight"])
