# SPDX-License-Identifier: Apache-2.0
"""Sets of chests: what the networks get, how cases are drawn, and that a cache changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcf.phantoms import ChestDataset, ChestState, PairedChestDataset, captions, draw_chest, training_captions
from medcf.phantoms.chest.dataset import CHILDREN
from medcf.training.datasets import training_dataset

GRID = {"size": (32, 32), "progress": False}


@pytest.fixture(scope="module")
def pairs() -> PairedChestDataset:
    return PairedChestDataset("test", 8, devices=0.5, **GRID)


def test_items_are_what_the_networks_expect(pairs: PairedChestDataset) -> None:
    for item in pairs:
        for name in ("image", "image_true", "lesion"):
            assert item[name].shape == (1, 32, 32)
            assert item[name].dtype == torch.float32
        for name in ("segmentation", "lungs"):
            assert item[name].shape == (1, 32, 32)
            assert item[name].dtype == torch.int64
        assert -1 <= item["image"].min() < -0.5
        assert 0.2 < item["image"].max() <= 1
        assert int(item["label"]) in range(4)
        assert item["case"] == f"test-{int(item['subject']):07d}"
        assert int(item["age_group"]) == int(int(item["subject"]) % 4 == 0)
        assert (item["lesion"].max() > 0) == (int(item["label"]) > 0)


def test_a_pair_differs_in_the_lesion_and_otherwise_only_in_grain(pairs: PairedChestDataset) -> None:
    sick = 0
    for item in pairs:
        change = (item["image"] - item["image_true"]).abs()
        assert change[item["lesion"] == 0].mean() < 0.03
        assert (change > 0).float().mean() > 0.2
        if item["label"]:
            sick += 1
            thick = item["lesion"] > 0.5 * item["lesion"].max()
            assert (item["image"] - item["image_true"])[thick].mean() > 0.05
    assert sick >= 3


def test_pairs_are_the_cases_of_the_plain_set(pairs: PairedChestDataset) -> None:
    plain = ChestDataset("test", 2, devices=0.5, **GRID)
    for index in range(2):
        for name, value in plain[index].items():
            if isinstance(value, str):
                assert pairs[index][name] == value
            else:
                assert torch.equal(torch.as_tensor(pairs[index][name]), torch.as_tensor(value)), name


def test_a_case_depends_only_on_split_seed_and_index() -> None:
    few, many = ChestDataset("val", 2, seed=3, **GRID), ChestDataset("val", 4, seed=3, **GRID)
    for index in range(2):
        assert torch.equal(few[index]["image"], many[index]["image"])
        assert few[index]["caption"] == many[index]["caption"]
    other = ChestDataset("val", 2, seed=4, **GRID)
    assert set(few._arrays["subject"].tolist()).isdisjoint(other._arrays["subject"].tolist())


def test_processes_and_a_cache_give_the_same_set(tmp_path: Path) -> None:
    plain = ChestDataset("train", 3, **GRID)
    file = tmp_path / "set.npz"
    stored = ChestDataset("train", 3, cache_file=file, **GRID)
    written = file.stat().st_mtime_ns
    loaded = ChestDataset("train", 3, cache_file=file, **GRID)
    assert file.stat().st_mtime_ns == written
    for one in (stored, loaded):
        for first, second in zip(plain, one, strict=True):
            assert torch.equal(first["image"], second["image"])
            assert torch.equal(first["lesion"], second["lesion"])
            assert first["caption"] == second["caption"]
    ChestDataset("train", 3, confounded=False, cache_file=file, **GRID)
    assert file.stat().st_mtime_ns != written


def test_no_subject_is_in_two_splits() -> None:
    seen: set[int] = set()
    for split in ("train", "val", "oracle", "test", "demo"):
        subjects = {draw_chest(split, index).subject.seed for index in range(60)}
        assert len(subjects) == 60
        assert not seen & subjects
        seen |= subjects


def children(label: int, *, confounded: bool, count: int = 250) -> float:
    cases = (draw_chest("train", index, label=label, confounded=confounded) for index in range(count))
    return float(np.mean([case.subject.age_group == "child" for case in cases]))


@pytest.mark.parametrize("label", [1, 3])
def test_children_have_viral_pneumonia_more_often_unless_that_is_turned_off(label: int) -> None:
    assert children(label, confounded=True) == pytest.approx(CHILDREN[label], abs=0.08)
    assert children(label, confounded=False) == pytest.approx(np.mean(CHILDREN), abs=0.08)


def test_classes_are_balanced_as_asked() -> None:
    def shares(**options: object) -> np.ndarray:
        labels = [draw_chest("train", index, **options).state.label for index in range(400)]  # type: ignore[arg-type]
        return np.bincount(labels, minlength=4) / len(labels)

    np.testing.assert_allclose(shares(), 0.25, atol=0.07)
    np.testing.assert_allclose(shares(balance=(2, 1, 1, 0)), (0.5, 0.25, 0.25, 0), atol=0.07)


def test_devices_have_nothing_to_do_with_the_class() -> None:
    cases = [draw_chest("train", index, devices=0.4) for index in range(600)]
    for label in range(4):
        shares = [case.device is not None for case in cases if case.state.label == label]
        assert np.mean(shares) == pytest.approx(0.4, abs=0.12)
    assert not any(draw_chest("train", index, devices=0.0).device for index in range(50))


def test_heart_size_and_caption_are_unrelated() -> None:
    cases = [draw_chest("train", index, confounded=False) for index in range(300)]
    sizes = np.array([case.subject.shape.heart for case in cases])
    labels = np.array([case.state.label for case in cases])
    large = np.array(["large" in case.caption for case in cases])
    for group in (*(labels == label for label in range(4)), large):
        assert abs(np.corrcoef(sizes, group)[0, 1]) < 0.17  # three standard errors
    assert sizes.std() > 0.08


def test_trainings_never_see_a_held_out_wording() -> None:
    known = set(training_captions())
    for index in range(200):
        case = draw_chest("train", index)
        assert case.caption in known
        assert case.caption in captions(case.state)
    assert all(draw_chest("test", index, held_out=1.0).caption not in known for index in range(50))


def test_the_truth_of_a_case_can_be_any_state_with_the_same_or_other_grain() -> None:
    case = draw_chest("test", 0, label=2)
    own, same, other = case.render(size=(32, 32)), case.render(ChestState(), size=(32, 32)), None
    assert (own.image == same.image)[own.lesion_mm == 0].all()
    other = case.render(ChestState(), again=True, size=(32, 32))
    assert (other.image != same.image).mean() > 0.2


def test_wrong_options_are_refused_before_rendering() -> None:
    with pytest.raises(ValueError, match="split 'tset' is unknown"):
        ChestDataset("tset", 3)
    with pytest.raises(ValueError, match="four weights"):
        ChestDataset("train", 3, balance=(1, 1))
    with pytest.raises(ValueError, match="two sizes"):
        ChestDataset("train", 3, size=(8, 8, 8))
    with pytest.raises(ValueError, match="count must be in"):
        ChestDataset("train", 0)
    for label in (-1, 4):
        with pytest.raises(ValueError, match=f"label={label}: choose 0 to 3"):
            draw_chest("train", 0, label=label)


def test_training_configs_get_chests_by_name(tmp_path: Path) -> None:
    options = {"phantom": "chest_xray", "count": 2, "size": [32, 32], "spacing": None, "cache_dir": tmp_path}
    dataset = training_dataset("oracle", **options)
    assert dataset[1]["caption"] in training_captions()
    assert torch.equal(dataset[0]["image"], ChestDataset("oracle", 2, **GRID)[0]["image"])
    assert len(list(tmp_path.glob("chest_xray_oracle_2_32x32_*.npz"))) == 1
