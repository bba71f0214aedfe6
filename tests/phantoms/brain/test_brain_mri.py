# SPDX-License-Identifier: Apache-2.0
"""One brain in any state of the disease: what changes, what stays, and whether its truth is true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from medcf.phantoms import TISSUES, BrainMRI, BrainState, draw_brain
from medcf.phantoms.brain.anatomy import Brain

GRID = {"size": (40, 48, 40), "spacing": 4.0}
SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def course():
    """One subject, sicker and sicker, scanned with the same noise."""
    return [BrainMRI(7).render(BrainState(severity), **GRID) for severity in SEVERITIES]


def volumes(samples, name: str) -> np.ndarray:
    return np.array([sample.volumes_mm3[name] for sample in samples])


def deep(sample, label: int) -> np.ndarray:
    """Voxels of a tissue that hold nothing else."""
    return binary_erosion(sample.segmentation == label)


@pytest.mark.parametrize(
    ("tissue", "sign", "least"), [("ventricles", 1, 0.5), ("csf", 1, 0.3), ("hippocampi", -1, 0.2), ("gm", -1, 0.1)]
)
def test_the_disease_moves_every_volume_one_way(course, tissue, sign, least):
    found = volumes(course, tissue)
    assert (sign * np.diff(found) > 0).all()
    assert sign * (found[-1] / found[0] - 1) > least


@pytest.mark.parametrize("seed", [3, 11])
def test_other_subjects_sicken_alike(seed):
    healthy, sick = (BrainMRI(seed).render(BrainState(severity), **GRID).volumes_mm3 for severity in (0.0, 1.0))
    assert sick["ventricles"] > 1.5 * healthy["ventricles"]
    assert sick["hippocampi"] < 0.8 * healthy["hippocampi"]
    assert sick["gm"] < 0.95 * healthy["gm"]


def test_contrast_of_gray_and_white_matter_falls():
    rendered = [BrainMRI(7).render(BrainState(severity), size=(60, 48, 60), spacing=2.0) for severity in (0, 0.5, 1)]
    contrast = [s.image[deep(s, 3)].mean() - s.image[s.segmentation == 2].mean() for s in rendered]
    assert contrast[0] > contrast[1] + 0.02 > contrast[2] + 0.04


def test_the_brain_keeps_its_outline_and_its_folding(course):
    healthy, sick, other = course[0], course[-1], BrainMRI(8).render(**GRID)
    np.testing.assert_array_equal(healthy.mask, sick.mask)
    sulci = healthy.segmentation == 1
    assert (sick.segmentation[sulci] == 1).mean() > 0.98  # they widen where they are
    assert (other.segmentation[sulci] == 1).mean() < 0.8


def test_the_scanner_stays_the_same(course):
    healthy, sick = course[0], course[-1]
    white = deep(healthy, 3) & deep(sick, 3)
    assert white.sum() > 100
    ratio = sick.image[white] / healthy.image[white]
    # shading and noise cancel out, what is left is the fall of the contrast
    assert ratio.std() < 0.3 * (healthy.image[white] / healthy.image[white].mean()).std()
    again = BrainMRI(7).render(BrainState(0.0), seed=1, **GRID)
    assert (again.image[white] / healthy.image[white]).std() > ratio.std()


def test_same_seed_gives_the_same_voxels_and_another_seed_noise_alone(course):
    again, other = (BrainMRI(7).render(BrainState(0.5), seed=seed, **GRID) for seed in (0, 1))
    np.testing.assert_array_equal(again.image, course[2].image)
    np.testing.assert_array_equal(again.segmentation, other.segmentation)
    difference = (again.image - other.image)[again.mask]
    assert 0 < np.abs(difference).mean() < 0.05
    assert again.volumes_mm3 == other.volumes_mm3


def test_the_phantom_is_the_one_that_the_weights_were_trained_on(course):
    sample = course[2]
    found = np.bincount(sample.segmentation.ravel(), minlength=6)
    np.testing.assert_allclose(found, [55575, 1781, 9161, 9831, 387, 65], atol=3)
    assert sample.image[sample.mask].mean() == pytest.approx(0.61941, abs=2e-4)


def test_background_is_exactly_black_and_labels_fill_the_mask(course):
    for sample in course:
        assert (sample.image[~sample.mask] == 0).all()
        assert (sample.image[sample.mask] > 0).all()
        np.testing.assert_array_equal(sample.mask, sample.segmentation > 0)
        assert set(np.unique(sample.segmentation)) == set(range(6))
        np.testing.assert_allclose(sample.image * 255, np.rint(sample.image * 255), atol=1e-4)


def inside(subject: BrainMRI, points: np.ndarray, severity: float) -> dict[str, np.ndarray]:
    """Which tissue each point lies in, by the signs of the distances alone."""
    brain = Brain.at(points, subject.shape, severity=severity)
    cortex = subject.shape.cortex * (1 - 0.18 * severity)
    rest = brain.envelope < 0
    found = {}
    for name, surface in {"ventricles": brain.ventricles, "hippocampi": brain.hippocampi}.items():
        found[name] = rest & (surface < 0)
        rest &= ~found[name]
    found["wm"] = rest & (brain.pial > cortex)
    found["gm"] = rest & (brain.pial > 0) & ~found["wm"]
    found["csf"] = rest & (brain.pial <= 0)
    return found


@pytest.mark.parametrize(
    ("names", "low", "high", "tolerance"),
    [
        (("csf", "gm", "wm"), (-80, -100, -85), (80, 100, 80), 0.03),
        (("ventricles",), (-50, -80, -50), (50, 50, 45), 0.03),
        (("hippocampi",), (-45, -55, -35), (45, 10, 15), 0.1),  # thin: half-filled voxels count a little too much
    ],
)
def test_volumes_are_those_that_points_between_the_voxels_count(names, low, high, tolerance):
    subject, severity = BrainMRI(21), 0.4
    sample = subject.render(BrainState(severity))
    extent = np.subtract(high, low)
    points = np.random.default_rng(0).uniform(low, high, (300_000, 3)).T.astype(np.float32)
    counted = inside(subject, points, severity)
    for name in names:
        assert counted[name].mean() * extent.prod() == pytest.approx(sample.volumes_mm3[name], rel=tolerance)


def test_segmentation_shows_the_volumes(course):
    sample = course[2]
    for label, name in ((2, "gm"), (3, "wm"), (4, "ventricles")):
        assert (sample.segmentation == label).sum() * 64 == pytest.approx(sample.volumes_mm3[name], rel=0.25)
    assert sum(sample.volumes_mm3.values()) == pytest.approx(sample.mask.sum() * 64, rel=0.02)


@pytest.mark.parametrize(("size", "spacing"), [((40, 48, 40), 4.0), ((60, 60, 50), 2.5)])
def test_structures_lie_where_the_affine_says(size, spacing):
    subject = BrainMRI(7)
    sample = subject.render(size=size, spacing=spacing)
    np.testing.assert_array_equal(np.diag(sample.affine)[:3], spacing)
    index = np.argwhere(sample.segmentation == 5)
    world = index @ sample.affine[:3, :3].T + sample.affine[:3, 3]
    for side in (-1, 1):
        center = world[np.sign(world[:, 0]) == side].mean(0)
        np.testing.assert_allclose(center, np.array([side * 25, -19, -14]) * subject.shape.scale, atol=6.0)
    brain = Brain.at(world.T.astype(np.float32), subject.shape, severity=0.15)
    assert (brain.hippocampi < 0.5 * spacing).all()
    assert (brain.hippocampi < 0).mean() > 0.7
    middle = (np.array(size) - 1) / 2 @ sample.affine[:3, :3] + sample.affine[:3, 3]
    np.testing.assert_allclose(middle, 0, atol=1e-9)


def test_age_and_sex_say_nothing_about_the_class_but_shape_the_brain():
    drawn = [draw_brain("train", index) for index in range(1500)]
    label = np.array([state.label for _, state, _ in drawn])
    age = np.array([subject.age for subject, _, _ in drawn])
    male = np.array([subject.sex == "M" for subject, _, _ in drawn])
    assert abs(label.mean() - 0.5) < 0.04
    assert abs(np.corrcoef(label, age)[0, 1]) < 0.08
    assert abs(np.corrcoef(label, male)[0, 1]) < 0.08
    size = np.array([np.prod(subject.shape.scale) for subject, _, _ in drawn])
    ventricle = np.array([np.mean(subject.shape.ventricle) for subject, _, _ in drawn])
    assert size[male].mean() > 1.1 * size[~male].mean()
    assert np.corrcoef(age, ventricle)[0, 1] > 0.2
    assert abs(np.corrcoef(label, ventricle)[0, 1]) < 0.08


def test_classes_are_apart_and_typical_states_lie_within_them():
    rng = np.random.default_rng(0)
    for label in (0, 1):
        drawn = [BrainMRI(0).sample_state(rng, label) for _ in range(200)]
        assert {state.label for state in drawn} == {label}
        severities = [state.severity for state in drawn]
        assert min(severities) < BrainState.typical(label).severity < max(severities)
        assert BrainState.typical(label).label == label


def test_what_cannot_be_rendered_is_named():
    with pytest.raises(ValueError, match=r"severity=1\.2"):
        BrainMRI(0).render(BrainState(1.2), **GRID)
    with pytest.raises(ValueError, match=r"0 \(CN\) or 1 \(AD\), not 2"):
        BrainState.typical(2)


def test_tissues_name_the_labels():
    assert TISSUES == ("csf", "gm", "wm", "ventricles", "hippocampi")
