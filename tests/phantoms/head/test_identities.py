# SPDX-License-Identifier: Apache-2.0
"""Pairs of images of one subject, and its true parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.phantoms import FetalHead, subject_seed
from medcf.phantoms.head.identities import CANDIDATES, IdentityDataset, subject_parameters

OPTIONS = {"size": (32, 40), "spacing": 3.5, "progress": False}


@pytest.fixture(scope="module")
def dataset():
    return IdentityDataset("oracle", 3, ["bpd_mm", "facing"], views=3, **OPTIONS)


def test_a_pair_is_one_subject_in_two_poses(dataset):
    pairs = [dataset[index] for index in range(len(dataset))]
    assert len(pairs) == 3 * 3
    assert [int(pair["subject"]) for pair in pairs] == [subject_seed("oracle", i) for i in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert [(int(pair["label"]), int(pair["label_pair"])) for pair in pairs[:3]] == [(0, 1), (0, 0), (1, 0)]
    for pair in pairs:
        assert pair["image"].shape == (1, 32, 40)
        assert -1 <= pair["image"].min() < pair["image"].max() <= 1
        assert (pair["image"] - pair["image_pair"]).abs().mean() > 0.02


def test_images_of_one_subject_are_more_alike_than_of_two(dataset):
    images = torch.from_numpy(dataset.images.astype(np.float32)).flatten(2)
    same = (images[:, 0] - images[:, 2]).abs().mean()
    other = (images[:, 0] - images.roll(1, 0)[:, 2]).abs().mean()
    assert same < 0.8 * other


def test_parameters_are_those_of_the_head(dataset):
    head = FetalHead(subject_seed("oracle", 1))
    expected = torch.tensor([head.anatomy.bpd, head.facing], dtype=torch.float32)
    torch.testing.assert_close(dataset[4]["parameters"], expected)
    values = dict(zip(CANDIDATES, subject_parameters(head, tuple(CANDIDATES)), strict=True))
    assert values["cephalic_index"] == pytest.approx(values["bpd_mm"] / values["ofd_mm"])
    assert values["outline_0"] == pytest.approx(head.anatomy.harmonics[0])
    assert values["variation_9"] == pytest.approx(head.anatomy.variation[9])
    assert dataset.mean == pytest.approx(dataset.parameters.mean(0).tolist())
    assert dataset.std == pytest.approx(dataset.parameters.std(0).tolist())


def test_a_cache_gives_the_same_images_and_is_replaced_when_it_is_not_this_set(tmp_path, caplog):
    first = IdentityDataset("val", 1, views=2, cache_dir=tmp_path, **OPTIONS)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = IdentityDataset("val", 1, ["ofd_mm"], views=2, cache_dir=tmp_path, **OPTIONS)
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.images, again.images)
    assert again.parameters.shape == (1, 1)
    file.write_bytes(file.read_bytes()[:100])
    np.testing.assert_array_equal(
        IdentityDataset("val", 1, views=2, cache_dir=tmp_path, **OPTIONS).images, first.images
    )
    assert "damaged" in caplog.text


def test_the_seed_changes_subjects_and_the_transform_is_applied():
    other = IdentityDataset(
        "oracle", 1, ["bpd_mm"], views=2, seed=1, transform=lambda item: item["subject"] + 0.5, **OPTIONS
    )
    assert float(other[0]) == subject_seed("oracle", 0, 1) + 0.5


def test_what_cannot_be_is_refused(dataset):
    with pytest.raises(ValueError, match="at least 2"):
        IdentityDataset("oracle", 1, views=1)
    with pytest.raises(ValueError, match="unknown; choose from bpd_mm"):
        subject_parameters(FetalHead(0), ["weight_g"])
    with pytest.raises(IndexError):
        dataset[9]
