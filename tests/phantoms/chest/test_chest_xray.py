# SPDX-License-Identifier: Apache-2.0
"""The chest phantom: a disease changes its part of the lungs and nothing else, where its state says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from medcf.phantoms import ChestSample, ChestState, ChestXray

SIZE = (64, 64)
SICK = (
    ChestState("lung_opacity", "left", "lower", 0.8, 0.9),
    ChestState("lung_opacity", "both", None, 0.4, 0.6),
    ChestState("covid", extent=0.9, severity=1.0),
    ChestState("viral_pneumonia", extent=0.9, severity=1.0),
)
ADULT, CHILD = 5, 8


def side_columns(mask: np.ndarray) -> float:
    return float(np.nonzero(mask)[1].mean())


def centroid(lesion: np.ndarray) -> tuple[float, float]:
    rows, cols = np.indices(lesion.shape)
    return float((rows * lesion).sum() / lesion.sum()), float((cols * lesion).sum() / lesion.sum())


def test_the_same_seed_gives_the_same_sample() -> None:
    first, second = (ChestXray(ADULT).render(SICK[3], seed=4, size=SIZE, device="wires") for _ in range(2))
    for name in ("image", "segmentation", "lungs", "lesion_mm"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def test_the_order_of_renderings_does_not_matter() -> None:
    subject = ChestXray(ADULT)
    subject.render(SICK[2], seed=9, size=(32, 32), device="pacemaker")
    np.testing.assert_array_equal(
        subject.render(SICK[0], size=SIZE).image, ChestXray(ADULT).render(SICK[0], size=SIZE).image
    )


def test_truth_is_the_same_on_every_machine() -> None:
    sample = ChestXray(ADULT).render(SICK[0], size=SIZE, device="pacemaker")
    digest = hashlib.sha256(sample.segmentation.tobytes() + sample.lungs.tobytes()).hexdigest()
    assert digest[:16] == "289ef7ecad8fb431"
    assert sample.image.mean() == pytest.approx(0.4317, abs=1e-3)


def test_gray_values_are_those_of_a_stored_radiograph() -> None:
    image = ChestXray(ADULT).render(size=SIZE).image
    assert image.dtype == np.float32
    np.testing.assert_allclose(image * 255, np.rint(image * 255), atol=1e-4)
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("seed", [ADULT, CHILD, 11, 16])
def test_lungs_are_dark_and_the_middle_is_bright(seed: int) -> None:
    sample = ChestXray(seed).render(size=SIZE)
    lungs = sample.image[sample.segmentation == 1].mean(), sample.image[sample.segmentation == 2].mean()
    assert max(lungs) < sample.image[sample.segmentation == 3].mean() - 0.1


@pytest.mark.parametrize("seed", [ADULT, CHILD, 11, 16])
def test_the_patients_right_is_at_the_images_left(seed: int) -> None:
    lungs = ChestXray(seed).render(size=SIZE).lungs
    assert side_columns(lungs == 1) < SIZE[1] / 2 < side_columns(lungs == 2)


@pytest.mark.parametrize("seed", [ADULT, CHILD])
@pytest.mark.parametrize("state", SICK, ids=lambda state: state.disease)
def test_a_disease_changes_only_its_part_of_the_lungs(seed: int, state: ChestState) -> None:
    subject = ChestXray(seed)
    healthy, sick = subject.render(size=SIZE, device="wires"), subject.render(state, size=SIZE, device="wires")
    changed = healthy.image != sick.image
    assert changed.mean() > 0.01
    assert not (changed & (sick.lesion_mm == 0)).any()
    assert not ((sick.lesion_mm > 0) & (sick.lungs == 0)).any()
    assert healthy.lesion_mm.max() == 0
    for name in ("lungs", "segmentation"):
        np.testing.assert_array_equal(getattr(healthy, name), getattr(sick, name), err_msg=name)
    assert healthy.heart_ratio == sick.heart_ratio


def test_lesions_are_brighter_where_they_are_thick() -> None:
    subject = ChestXray(ADULT)
    healthy, sick = subject.render(size=SIZE), subject.render(SICK[0], size=SIZE)
    thick = sick.lesion_mm > 20
    assert thick.sum() > 20
    assert (sick.image - healthy.image)[thick].min() > 0


def test_another_grain_is_the_same_anatomy() -> None:
    subject = ChestXray(ADULT)
    first, second = (subject.render(SICK[0], seed=seed, size=SIZE) for seed in (0, 1))
    assert (first.image != second.image).mean() > 0.2
    assert np.abs(first.image - second.image).mean() < 0.02
    np.testing.assert_array_equal(first.lesion_mm, second.lesion_mm)


@pytest.mark.parametrize("seed", [ADULT, CHILD, 11, 13, 14, 16])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lobe", ["upper", "lower", None])
@pytest.mark.parametrize("extent", [0.05, 0.95])
def test_an_opacity_is_in_the_named_lung_and_lobe(seed: int, side: str, lobe: str | None, extent: float) -> None:
    sample = ChestXray(seed).render(ChestState("lung_opacity", side, lobe, extent), size=SIZE)  # type: ignore[arg-type]
    named = sample.lungs == (1 if side == "right" else 2)
    assert sample.lesion_mm[~named].max() == 0
    row, _ = centroid(sample.lesion_mm)
    rows = np.nonzero(named)[0]
    height = (row - rows.min()) / np.ptp(rows)
    if lobe == "upper":
        assert height < 0.55
    elif lobe == "lower":
        assert height > 0.5
    else:
        assert 0.3 < height < 0.75


def test_opacities_of_both_sides_are_in_both_lungs() -> None:
    sample = ChestXray(ADULT).render(ChestState("lung_opacity", "both", "upper"), size=SIZE)
    assert min(sample.lesion_mm[sample.lungs == side].max() for side in (1, 2)) > 10


@pytest.mark.parametrize("seed", [ADULT, CHILD])
@pytest.mark.parametrize("disease", ["lung_opacity", "covid", "viral_pneumonia"])
def test_area_and_volume_grow_with_extent_and_severity(seed: int, disease: str) -> None:
    side = "right" if disease == "lung_opacity" else None
    subject = ChestXray(seed)

    def of(extent: float, severity: float) -> ChestSample:
        return subject.render(ChestState(disease, side, None, extent, severity), size=SIZE)  # type: ignore[arg-type]

    wider = [of(extent, 0.7) for extent in (0.0, 0.25, 0.5, 0.75, 1.0)]
    areas = [int((sample.lesion_mm > 3).sum()) for sample in wider]
    assert areas == sorted(areas)
    assert areas[-1] > 1.4 * areas[0] > 0
    denser = [float(of(0.5, severity).lesion_mm.sum()) for severity in (0.0, 0.5, 1.0)]
    assert denser[0] < 0.8 * denser[1] < 0.64 * denser[2] * 1.25


@pytest.mark.parametrize("seed", [ADULT, CHILD, 11, 16])
def test_covid_is_peripheral_and_low_and_viral_pneumonia_is_around_the_hila(seed: int) -> None:
    subject = ChestXray(seed)
    covid, viral = (subject.render(ChestState(name, extent=0.4), size=SIZE) for name in ("covid", "viral_pneumonia"))  # type: ignore[arg-type]
    middle = (side_columns(covid.lungs == 1) + side_columns(covid.lungs == 2)) / 2
    off = np.abs(np.indices(SIZE)[1] - middle)
    distances = [float((off * sample.lesion_mm).sum() / sample.lesion_mm.sum()) for sample in (covid, viral)]
    assert distances[0] > distances[1] + 2
    rows = np.nonzero(covid.lungs)[0]
    assert centroid(covid.lesion_mm)[0] > rows.mean()
    for sample in (covid, viral):
        assert min(sample.lesion_mm[sample.lungs == side].sum() for side in (1, 2)) > 0


def test_lungs_go_on_behind_the_heart_and_the_device() -> None:
    sample = ChestXray(ADULT).render(size=SIZE, device="pacemaker")
    assert ((sample.lungs == 2) & (sample.segmentation == 3)).sum() > 10
    assert (sample.segmentation == 4).sum() > 10
    bare = ChestXray(ADULT).render(size=SIZE)
    assert not (bare.segmentation == 4).any()
    np.testing.assert_array_equal(bare.lungs, sample.lungs)
    assert (sample.image - bare.image)[sample.segmentation == 4].mean() > 0.05


def test_children_are_smaller_and_every_fourth_subject() -> None:
    subjects = [ChestXray(seed) for seed in range(24)]
    for subject in subjects:
        assert subject.age_group == ("child" if subject.seed % 4 == 0 else "adult")
    children = [subject.field_mm for subject in subjects if subject.age_group == "child"]
    adults = [subject.field_mm for subject in subjects if subject.age_group == "adult"]
    assert max(children) < min(adults)


def test_the_hearts_size_varies_among_subjects() -> None:
    ratios = [ChestXray(seed).render(size=SIZE).heart_ratio for seed in range(1, 40, 2)]
    assert 0.35 < min(ratios) < 0.48 < 0.52 < max(ratios) < 0.75


def test_the_grid_shows_the_same_chest_at_every_resolution() -> None:
    subject = ChestXray(ADULT)
    coarse, fine = subject.render(SICK[0], size=(64, 64)), subject.render(SICK[0], size=(128, 128))
    assert coarse.spacing_mm[0] == pytest.approx(2 * fine.spacing_mm[0])
    shrunk = fine.image.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.corrcoef(shrunk.ravel(), coarse.image.ravel())[0, 1] > 0.99
    area = [float((s.lungs > 0).sum()) * s.spacing_mm[0] ** 2 for s in (coarse, fine)]
    assert area[0] == pytest.approx(area[1], rel=0.02)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"disease": "flu"}, "choose one of normal"),
        ({"disease": "lung_opacity"}, "needs the side"),
        ({"disease": "lung_opacity", "side": "left", "lobe": "middle"}, "choose 'upper'"),
        ({"disease": "covid", "side": "left"}, "leave side and lobe out"),
        ({"disease": "normal", "lobe": "upper"}, "leave side and lobe out"),
        ({"disease": "covid", "extent": 1.2}, r"must be in \[0, 1\]"),
    ],
)
def test_a_state_that_does_not_exist_is_refused(state: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChestState(**state)


def test_wrong_grids_and_devices_are_refused() -> None:
    for spacing in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive millimeters"):
            ChestXray(1).render(size=SIZE, spacing=spacing)
    with pytest.raises(ValueError, match="choose one of pacemaker, wires"):
        ChestXray(1).render(size=SIZE, device="stent")  # type: ignore[arg-type]
