# SPDX-License-Identifier: Apache-2.0
"""Sets of planes: examinations with several planes, the imbalance of the classes, sites, captions and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medcf.phantoms import COUNTS, PLANE_NAMES, FetalPlanes, PairedPlanesDataset, PlanesDataset, draw_plane
from medcf.phantoms.planes.dataset import class_shares
from medcf.phantoms.planes.prompts import HELD_OUT_PROMPTS, plane_prompts, training_plane_prompts
from medcf.training.datasets import training_dataset

GRID = {"size": (32, 32), "progress": False}


@pytest.fixture(scope="module")
def pairs() -> PairedPlanesDataset:
    return PairedPlanesDataset("test", 6, balance="equal", planes=2, site=None, **GRID)


def test_items_are_what_the_networks_expect(pairs: PairedPlanesDataset) -> None:
    for item in pairs:
        for name in ("image", "image_true", "image_again"):
            assert item[name].shape == (1, 32, 32)
            assert item[name].dtype == torch.float32
            assert -1 <= item[name].min() < -0.4
            assert -0.3 < item[name].max() <= 1
        for name in ("segmentation", "sector"):
            assert item[name].shape == (1, 32, 32)
            assert item[name].dtype == torch.int64
        assert int(item["label"]) in range(6)
        assert 18 <= item["weeks"] <= 36
        assert item["case"].startswith(f"test-{int(item['subject']):07d}-")


def test_pairs_are_the_cases_of_the_plain_set(pairs: PairedPlanesDataset) -> None:
    plain = PlanesDataset("test", 2, balance="equal", planes=2, site=None, **GRID)
    for index in range(2):
        for name, value in plain[index].items():
            if isinstance(value, str):
                assert pairs[index][name] == value
            else:
                assert torch.equal(torch.as_tensor(pairs[index][name]), torch.as_tensor(value)), name


def test_the_truth_of_a_pair_is_the_same_plane_at_the_other_site_at_the_same_pixels(
    pairs: PairedPlanesDataset,
) -> None:
    case = draw_plane("test", 0, balance="equal", planes=2, site=None)
    own = case.render(size=(32, 32))
    other = case.render(site=case.other, frame=case.site, again=True, size=(32, 32))
    assert {own.site, other.site} == {"A", "B"}
    np.testing.assert_array_equal(own.segmentation, other.segmentation)
    np.testing.assert_allclose((pairs[0]["image_true"][0].numpy() + 1) / 2, other.image, atol=1e-6)
    again = (pairs[0]["image_again"] - pairs[0]["image"]).abs().mean()
    assert 0 < again < (pairs[0]["image_true"] - pairs[0]["image"]).abs().mean()


def test_a_case_depends_only_on_split_seed_and_index() -> None:
    few, many = (PlanesDataset("val", count, seed=3, **GRID) for count in (2, 3))
    for index in range(2):
        assert torch.equal(few[index]["image"], many[index]["image"])
        assert few[index]["caption"] == many[index]["caption"]
    assert draw_plane("val", 0, seed=3).subject.seed != draw_plane("val", 0, seed=4).subject.seed


def test_a_cache_gives_the_same_set_and_knows_its_options(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    stored = PlanesDataset("train", 2, cache_file=file, **GRID)
    written = file.stat().st_mtime_ns
    loaded = PlanesDataset("train", 2, cache_file=file, **GRID)
    assert file.stat().st_mtime_ns == written
    for first, second in zip(stored, loaded, strict=True):
        assert torch.equal(first["image"], second["image"])
        assert first["caption"] == second["caption"]
    PlanesDataset("train", 2, site="B", cache_file=file, **GRID)
    assert file.stat().st_mtime_ns != written


def test_subjects_have_several_planes_and_are_in_one_split_at_one_site() -> None:
    seen: set[int] = set()
    for split in ("train", "val", "oracle", "test", "demo"):
        cases = [draw_plane(split, index, site=None, planes=4) for index in range(40)]
        subjects = [case.subject.seed for case in cases]
        assert all(subjects.count(seed) == 4 for seed in subjects)
        assert not seen & set(subjects)
        seen |= set(subjects)
        for seed in set(subjects):
            assert len({case.site for case in cases if case.subject.seed == seed}) == 1
            assert sorted(case.number for case in cases if case.subject.seed == seed) == [0, 1, 2, 3]
        assert {case.site for case in cases} == {"A", "B"}


def test_classes_are_as_unequal_as_in_fetal_planes_db_or_as_asked() -> None:
    def shares(balance: object) -> np.ndarray:
        labels = [draw_plane("train", index, balance=balance, planes=50).state.label for index in range(800)]  # type: ignore[arg-type]
        return np.bincount(labels, minlength=6) / len(labels)

    np.testing.assert_allclose(shares("fetal_planes_db"), np.array(COUNTS) / 12400, atol=0.05)
    np.testing.assert_allclose(shares("equal"), 1 / 6, atol=0.05)
    np.testing.assert_allclose(shares((0, 0, 1, 1, 0, 0)), (0, 0, 0.5, 0.5, 0, 0), atol=0.06)
    for balance in ("rare", (1, 2), (0,) * 6, (1, 1, 1, 1, 1, -1)):
        with pytest.raises(ValueError, match="balance"):
            class_shares(balance)


def test_captions_are_true_and_name_the_site_as_often_as_asked() -> None:
    cases = [draw_plane("train", index, site=None, balance="equal", planes=50) for index in range(300)]
    assert all(case.prompt in training_plane_prompts() for case in cases)
    for case in cases:
        assert case.prompt in plane_prompts(case.state.label) + plane_prompts(case.state.label, case.site)
    assert np.mean(["site" in case.prompt for case in cases]) == pytest.approx(0.5, abs=0.1)
    never = [draw_plane("train", index, name_site=0.0, planes=50).prompt for index in range(40)]
    assert not any("site" in prompt for prompt in never)


def test_held_out_wordings_are_new_but_their_words_are_not() -> None:
    words = {word for prompt in training_plane_prompts() for word in prompt.replace(",", "").split()}
    for label, name in enumerate(PLANE_NAMES):
        for prompt in HELD_OUT_PROMPTS[name]:
            assert prompt not in training_plane_prompts()
            assert set(prompt.split()) <= words, prompt
        assert plane_prompts(label, held_out=True) == list(HELD_OUT_PROMPTS[name])
    drawn = draw_plane("test", 0, held_out=1.0, name_site=0.0)
    assert drawn.prompt in HELD_OUT_PROMPTS[drawn.state.name]


def test_trainings_find_it_by_name(tmp_path: Path) -> None:
    options = {"count": 2, "size": (32, 32), "spacing": None, "phantom": "fetal_planes", "cache_dir": tmp_path}
    dataset = training_dataset("oracle", **options)
    assert torch.equal(dataset[0]["image"], PlanesDataset("oracle", 2, **GRID)[0]["image"])
    assert len(list(tmp_path.glob("fetal_planes_oracle_2_32x32_*.npz"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"site": "C"}, "choose one of A, B"), ({"planes": 0}, "at least one"), ({"count": 0}, "1..")],
)
def test_wrong_options_are_refused_before_rendering(
    options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FetalPlanes, "render", lambda *_, **__: pytest.fail("rendered"))
    with pytest.raises(ValueError, match=message):
        PlanesDataset("train", **{"count": 1, **options}, **GRID)
