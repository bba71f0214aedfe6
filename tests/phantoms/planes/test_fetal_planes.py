# SPDX-License-Identifier: Apache-2.0
"""The phantom of fetal planes: what belongs to the subject, to the plane, to the site and to the speckle."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fetal_planes.likeness import black_border, speckle_width
from medcf.phantoms import COUNTS, PLANE_NAMES, STRUCTURES, FetalPlanes, PlaneState
from medcf.phantoms.planes.fetus import median_sizes
from medcf.phantoms.planes.states import VARIANTS
from medcf.registry import PHANTOMS, lookup

SIZE = (64, 64)
STANDARD = {name: PlaneState(label, next(iter(VARIANTS[name]))) for label, name in enumerate(PLANE_NAMES)}
#: What each plane must show.
SHOWN = {
    "abdomen": {"abdomen", "stomach", "umbilical_vein", "spine"},
    "brain": {"skull", "thalami", "cavum"},
    "femur": {"thigh", "femur"},
    "thorax": {"thorax", "heart", "chambers", "ribs", "spine"},
    "cervix": {"cervix", "canal", "bladder", "fetal_head"},
}


def area(sample, name: str) -> float:
    """Area of a structure in mm²."""
    return float((sample.segmentation == STRUCTURES.index(name) + 1).sum()) * sample.spacing_mm[0] ** 2


def gray(sample, name: str) -> float:
    return float(sample.image[sample.segmentation == STRUCTURES.index(name) + 1].mean())


def test_the_registry_finds_it() -> None:
    assert lookup(PHANTOMS, "fetal_planes") is FetalPlanes


@pytest.mark.parametrize("name", PLANE_NAMES)
def test_the_same_seed_gives_the_same_sample_in_any_order(name: str) -> None:
    first = FetalPlanes(3).render(STANDARD[name], seed=4, size=SIZE)
    subject = FetalPlanes(3)
    subject.render(STANDARD["thorax"], site="B", size=(48, 48))
    second = subject.render(STANDARD[name], seed=4, size=SIZE)
    for part in ("image", "segmentation", "sector"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part), err_msg=part)


def test_truth_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for name in PLANE_NAMES:
        for site in "AB":
            digest.update(FetalPlanes(3).render(STANDARD[name], site=site, size=(32, 32)).segmentation.tobytes())
    assert digest.hexdigest()[:16] == "44c80197b34a037e"


def test_gray_values_are_those_of_a_stored_picture() -> None:
    image = FetalPlanes(3).render(STANDARD["femur"], size=SIZE).image
    assert image.dtype == np.float32
    np.testing.assert_allclose(image * 255, np.rint(image * 255), atol=1e-4)
    assert image.min() == 0
    assert 0.5 < image.max() <= 1


@pytest.mark.parametrize("name", list(SHOWN))
def test_a_plane_shows_what_makes_it_standard(name: str) -> None:
    sample = FetalPlanes(7).render(STANDARD[name], site="B", size=(128, 128))
    found = {STRUCTURES[value - 1] for value in np.unique(sample.segmentation) if value}
    assert SHOWN[name] <= found
    assert sample.label == PLANE_NAMES.index(name)


def test_fluid_is_black_and_bone_is_bright_with_a_shadow_behind_it() -> None:
    subject = FetalPlanes(7)
    trunk = subject.render(STANDARD["abdomen"], size=(128, 128))
    assert gray(trunk, "stomach") < 0.6 * gray(trunk, "abdomen")
    thorax = subject.render(STANDARD["thorax"], size=(128, 128))
    assert gray(thorax, "chambers") < 0.7 * gray(thorax, "thorax")
    femur = subject.render(STANDARD["femur"], size=(128, 128))
    assert gray(femur, "femur") > 1.5 * gray(femur, "thigh")
    rows, cols = np.nonzero(femur.segmentation == STRUCTURES.index("femur") + 1)
    middle = cols == int(np.median(cols))
    top, bottom = rows[middle].min(), rows[middle].max()
    columns = slice(int(np.median(cols)) - 8, int(np.median(cols)) + 9)
    assert femur.image[bottom + 6 : bottom + 14, columns].mean() < femur.image[top - 14 : top - 6, columns].mean()


def test_sizes_follow_the_gestational_age() -> None:
    # Medians at 20 and 30 weeks as published (INTERGROWTH-21st tables), mm.
    assert median_sizes(20) == pytest.approx({"bpd": 48.4, "ofd": 60.7, "ac": 147.7, "fl": 31.3}, abs=0.3)
    subjects = sorted((FetalPlanes(seed) for seed in range(40)), key=lambda subject: subject.weeks)
    young, old = subjects[0], subjects[-1]
    assert 18 <= young.weeks < 21 < 30 < old.weeks <= 36
    for name, structure in (("abdomen", "abdomen"), ("femur", "femur"), ("brain", "thalami")):
        areas = [area(subject.render(STANDARD[name], site="B", size=(128, 128)), structure) for subject in (young, old)]
        assert areas[1] > 1.3 * areas[0]
    lengths = [subject.fetus.sizes["fl"] for subject in subjects]
    assert np.corrcoef([subject.weeks for subject in subjects], lengths)[0, 1] > 0.95


@pytest.mark.parametrize("name", PLANE_NAMES)
def test_in_the_same_frame_sites_show_the_same_anatomy_at_the_same_pixels(name: str) -> None:
    subject = FetalPlanes(5)
    own, other = (subject.render(STANDARD[name], site=site, frame="A", size=SIZE) for site in "AB")
    np.testing.assert_array_equal(own.segmentation, other.segmentation)
    np.testing.assert_array_equal(own.sector, other.sector)
    assert own.spacing_mm == other.spacing_mm
    assert np.abs(own.image - other.image)[own.sector].mean() > 0.02


def test_a_site_changes_no_size_in_millimeters() -> None:
    whole = replace(STANDARD["abdomen"], framing=0.0)
    first, second = (FetalPlanes(5).render(whole, site=site, size=(192, 192)) for site in "AB")
    assert first.spacing_mm != second.spacing_mm
    for name in ("abdomen", "stomach", "spine"):
        assert area(first, name) == pytest.approx(area(second, name), rel=0.08)


def test_another_speckle_is_the_same_picture_otherwise() -> None:
    whole = replace(STANDARD["thorax"], framing=0.0)
    first, second = (FetalPlanes(5).render(whole, seed=seed, size=SIZE) for seed in (0, 1))
    assert (first.image != second.image)[first.sector].mean() > 0.5
    assert np.abs(first.image - second.image).mean() < 0.06
    np.testing.assert_array_equal(first.segmentation, second.segmentation)
    rest = ~first.sector
    assert np.abs(first.image - second.image)[rest].mean() < 0.02  # text and borders stay


def test_sites_differ_in_brightness_speckle_and_borders() -> None:
    found = {}
    for site in "AB":
        rows = []
        for seed in range(8):
            state = PlaneState.draw(np.random.default_rng(seed), seed % 4)
            subject = FetalPlanes(seed)
            first, second = (subject.render(state, site=site, frame="A", seed=k, size=(128, 128)) for k in (0, 1))
            speckle = 0.5 + (first.image - second.image).astype(float) / 2  # without the anatomy
            side = subject.layout(state, site).side
            rows.append((first.image.mean(), speckle_width(speckle, 0), speckle_width(speckle, 1), side))
        found[site] = np.mean(rows, axis=0)
    brightness, along, across, side = found["B"] / found["A"]
    assert brightness > 1.05
    assert along > 1.05
    assert across > 1.05
    assert side > 1.1  # shows more


def test_only_text_is_left_out_without_captions() -> None:
    subject = next(FetalPlanes(seed) for seed in range(20) if _writes(FetalPlanes(seed)))
    bare, written = (subject.render(STANDARD["brain"], size=SIZE, captions=captions) for captions in (False, True))
    assert (written.image >= bare.image).all()
    assert 0.005 < (written.image != bare.image).mean() < 0.3


def _writes(subject: FetalPlanes) -> bool:
    from medcf.phantoms.planes.sites import SITES

    return SITES["A"].machine(subject.seed).captions == "column"


def test_black_is_what_lies_outside_the_sector() -> None:
    sample = FetalPlanes(5).render(replace(STANDARD["abdomen"], framing=0.0), site="B", size=(128, 128), captions=False)
    assert sample.image[~sample.sector].mean() < 0.02
    assert black_border(sample.image.astype(float)) == pytest.approx(1 - sample.sector.mean(), abs=0.12)


def test_states_are_drawn_of_the_class_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(PLANE_NAMES):
        drawn = [PlaneState.draw(rng, label) for _ in range(60)]
        assert {state.label for state in drawn} == {label}
        assert {state.variant for state in drawn} == set(VARIANTS[name])
    assert sum(COUNTS) == 12400


@pytest.mark.parametrize(
    ("state", "message"), [({"label": 6}, "choose 0 to 5"), ({"label": 1, "variant": "femur"}, "brain has trans")]
)
def test_a_plane_that_does_not_exist_is_refused(state: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlaneState(**state)


def test_wrong_sites_and_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of A, B"):
        FetalPlanes(1).render(site="C", size=SIZE)
    for spacing in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive millimeters"):
            FetalPlanes(1).render(size=SIZE, spacing=spacing)
