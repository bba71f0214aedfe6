# SPDX-License-Identifier: Apache-2.0
"""Sets of brains: what the networks get, where it comes from, and that a cache changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcf.phantoms import TISSUES, BrainDataset, BrainState, PairedBrainDataset, draw_brain
from medcf.phantoms.brain.dataset import brain_on_grid

GRID = {"size": (40, 48, 40), "spacing": 4.0, "progress": False}
CORE = {"size": (10, 12, 10), "spacing": 4.0, "progress": False}  # the middle of a brain, which is rendered at once


@pytest.fixture(scope="module")
def pairs() -> PairedBrainDataset:
    return PairedBrainDataset("test", 3, **GRID)


def test_items_are_what_the_networks_expect(pairs):
    for item in pairs:
        assert item["image"].shape == item["segmentation"].shape == (1, 40, 48, 40)
        assert item["image"].dtype == torch.float32
        assert item["segmentation"].dtype == torch.int64
        inside = item["segmentation"] > 0
        assert (item["image"][~inside] == -1).all()
        assert item["image"][inside].min() > -1
        assert item["image"].max() <= 1
        assert item["volumes"].shape == (len(TISSUES),)
        assert 900_000 < item["volumes"].sum() < 1_800_000
        assert 55 <= item["age"] <= 90
        assert item["sex"] in (0, 1)
        assert item["case"] == f"test-{int(item['subject']):07d}"


def test_a_pair_is_one_subject_on_one_scanner_in_both_classes(pairs):
    for item in pairs:
        label = int(item["label"])
        assert int(item["target"]) == 1 - label
        assert float(item["severity_true"]) == pytest.approx(BrainState.typical(1 - label).severity)
        grows = (item["volumes_true"] - item["volumes"]) * (1 if label == 0 else -1)
        found = dict(zip(TISSUES, grows.tolist(), strict=True))
        assert found["ventricles"] > 0
        assert found["csf"] > 0
        assert found["hippocampi"] < 0
        assert found["gm"] < 0
        torch.testing.assert_close(item["segmentation"] > 0, item["segmentation_true"] > 0)
        same = item["segmentation"] == item["segmentation_true"]
        assert same[item["segmentation"] == 3].float().mean() > 0.85
        assert (item["image"] != item["image_true"])[item["segmentation"] == 3].float().mean() > 0.8


def test_pairs_are_the_subjects_and_states_of_the_plain_set(pairs):
    item = BrainDataset("test", 1, **GRID)[0]
    for key in ("image", "segmentation", "label", "severity", "age", "sex", "volumes", "subject"):
        assert torch.equal(torch.as_tensor(item[key]), torch.as_tensor(pairs[0][key])), key


def test_the_grid_is_the_mean_over_the_brain_in_blocks(pairs):
    subject, state, rng = draw_brain("test", 0)
    sample = subject.render(state, seed=int(rng.integers(2**31)))
    blocks = np.where(sample.mask, sample.image, np.nan).reshape(40, 2, 48, 2, 40, 2)
    kept = sample.mask.reshape(40, 2, 48, 2, 40, 2).mean(axis=(1, 3, 5)) >= 0.5
    image = (pairs[0]["image"][0].numpy() + 1) / 2
    np.testing.assert_array_equal(kept, pairs[0]["segmentation"][0].numpy() > 0)
    expected = np.nanmean(np.moveaxis(blocks, (1, 3, 5), (0, 1, 2)).reshape(8, 40, 48, 40)[:, kept], axis=0)
    np.testing.assert_allclose(image[kept], expected, atol=0.5 / 255 + 1e-4)


def test_block_averages_keep_the_volumes(pairs):
    for item in pairs:
        counted = torch.bincount(item["segmentation"].flatten(), minlength=6)[1:] * 64.0
        assert counted.sum() == pytest.approx(float(item["volumes"].sum()), rel=0.03)
        for name in ("gm", "wm", "ventricles"):
            column = TISSUES.index(name)
            assert counted[column] == pytest.approx(float(item["volumes"][column]), rel=0.25)


def test_blocks_take_the_most_frequent_tissue_and_the_mean_of_the_brain():
    subject, state, _ = draw_brain("demo", 0)
    sample = subject.render(state, size=(4, 4, 4))
    object.__setattr__(sample, "image", np.full((4, 4, 4), 0.5, np.float32))
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2, :2, :2] = 3
    labels[0, 0, 0] = 2
    labels[2:, 2:, 2:] = 5
    labels[2:, 2:, 2] = 0  # half of that block is background
    labels[0, 2, 2] = 1  # an eighth of another is brain
    object.__setattr__(sample, "segmentation", labels)
    object.__setattr__(sample, "mask", labels > 0)
    object.__setattr__(sample, "image", np.where(labels > 0, 0.5, 0).astype(np.float32))
    image, found = brain_on_grid(sample, 2)
    assert found[0, 0, 0] == 3
    assert found[1, 1, 1] == 5
    assert found.astype(bool).sum() == 2
    assert image[1, 1, 1] == 128
    assert image[0, 1, 1] == 0


def same(first: BrainDataset, second: BrainDataset) -> bool:
    return all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        for a, b in zip(first, second, strict=True)
        for key, value in a.items()
    )


def test_a_cache_gives_back_the_same_set_and_is_not_written_twice(tmp_path: Path):
    path = tmp_path / "sub" / "set.npz"
    fresh = PairedBrainDataset("train", 3, **CORE)
    assert same(fresh, PairedBrainDataset("train", 3, cache_file=path, **CORE))
    stamp = path.stat().st_mtime_ns
    assert same(fresh, PairedBrainDataset("train", 3, cache_file=path, **CORE))
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("change", [{"seed": 1}, {"spacing": 2.0}, {"ad_fraction": 1.0}])
def test_a_cache_of_another_set_or_a_damaged_one_is_replaced(tmp_path: Path, change):
    path = tmp_path / "set.npz"
    BrainDataset("train", 2, cache_file=path, **(CORE | change))
    fresh = BrainDataset("train", 2, **CORE)
    assert same(fresh, BrainDataset("train", 2, cache_file=path, **CORE))
    path.write_bytes(path.read_bytes()[:500])
    assert same(fresh, BrainDataset("train", 2, cache_file=path, **CORE))


def test_the_number_of_cases_does_not_change_a_case():
    longer = BrainDataset("val", 3, **CORE)
    shorter = BrainDataset("val", 2, **CORE)
    assert same(shorter, [longer[0], longer[1]])
    assert not torch.equal(BrainDataset("val", 1, seed=1, **CORE)[0]["image"], shorter[0]["image"])


def test_splits_share_no_subject():
    subjects = {split: {int(item["subject"]) for item in BrainDataset(split, 2, **CORE)} for split in
                ("train", "val", "oracle", "test", "demo")}  # fmt: skip
    assert len(set.union(*subjects.values())) == 10


def test_the_share_of_the_classes_is_asked_for():
    assert BrainDataset("train", 2, ad_fraction=1.0, **CORE).labels.tolist() == [1, 1]
    assert BrainDataset("train", 2, ad_fraction=0.0, **CORE).labels.tolist() == [0, 0]


def test_transform_sees_every_item():
    assert PairedBrainDataset("demo", 1, transform=lambda item: sorted(item)[:2], **CORE)[0] == ["age", "case"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split 'dev' is unknown"),
        ({"spacing": 3.0}, "2 mm or less, or a multiple of 2 mm"),
        ({"size": (40, 48)}, "three sizes"),
    ],
)
def test_what_makes_no_set_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BrainDataset(**({"split": "train", "count": 1} | CORE | options))
