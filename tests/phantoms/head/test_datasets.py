# SPDX-License-Identifier: Apache-2.0
"""The phantom data set: deterministic, cached faithfully, disjoint between splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcf.phantoms import CONCEPTS, SPLITS, PhantomDataset, draw_case, subject_seed


def make(**options: object) -> PhantomDataset:
    """A small set."""
    return PhantomDataset(count=6, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fresh() -> PhantomDataset:
    """A set rendered in this process."""
    return make()


def assert_same(first: PhantomDataset, second: PhantomDataset) -> None:
    """Every field of every case agrees."""
    assert first.concept_names == second.concept_names
    for a, b in zip(first, second, strict=True):
        for key, value in a.items():
            assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]


def test_items_are_what_the_networks_expect(fresh: PhantomDataset) -> None:
    item = fresh[0]
    assert item["image"].shape == item["segmentation"].shape == (1, 64, 80)
    assert item["image"].dtype == torch.float32
    assert item["image"].min() >= -1
    assert item["image"].max() <= 1
    assert fresh.concept_names == tuple(CONCEPTS)
    assert item["concepts"].shape == (len(CONCEPTS),)
    assert item["case"] == "train-0000000"
    assert sorted({int(case["label"]) for case in fresh}) == [0, 1]


def test_images_are_area_averages_of_the_native_rendering(fresh: PhantomDataset) -> None:
    _, sample = draw_case("fetal_head", "train", 2)
    average = sample.image.astype(np.float64).reshape(64, 2, 80, 2).mean(axis=(1, 3))
    np.testing.assert_allclose((fresh[2]["image"][0].numpy() + 1) / 2, average, atol=0.5 / 255 + 1e-6)
    assert int(fresh[2]["label"]) == sample.label
    assert float(fresh[2]["quality"]) == pytest.approx(sample.quality)


def test_cache_and_worker_processes_give_the_same_set(fresh: PhantomDataset, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "set.npz"
    assert_same(fresh, make(cache_file=path, num_workers=1))
    stamp = path.stat().st_mtime_ns
    assert_same(fresh, make(cache_file=path))
    assert path.stat().st_mtime_ns == stamp


def test_cache_of_another_set_or_damaged_is_replaced(fresh: PhantomDataset, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    other = make(cache_file=path, seed=5)
    assert not torch.equal(other[0]["image"], fresh[0]["image"])
    assert_same(fresh, make(cache_file=path))
    path.write_bytes(path.read_bytes()[:1000])
    assert_same(fresh, make(cache_file=path))


def test_longer_set_begins_with_the_shorter_one(fresh: PhantomDataset) -> None:
    longer = PhantomDataset(count=8, progress=False)
    assert torch.equal(longer[5]["image"], fresh[5]["image"])


def test_splits_never_share_a_subject() -> None:
    ranges = [{subject_seed(split, index, seed) for index in (0, 999_999) for seed in (0, 9)} for split in SPLITS]
    for number, seeds in enumerate(ranges):
        assert all(seed // 1_000_000 == number for seed in seeds)


def test_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'dev' is unknown; choose one of train, val"):
        make(split="dev")


def test_transform_sees_every_item() -> None:
    cases = PhantomDataset(count=1, progress=False, transform=lambda item: item["case"])
    assert cases[0] == "train-0000000"
