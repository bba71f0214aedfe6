# SPDX-License-Identifier: Apache-2.0
"""The fetal head: reproducible pixels, and a ground truth that agrees with the picture."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import EllipseModel, label, regionprops

from medcf.phantoms import CONCEPTS, QUALITY_THRESHOLD, FetalHead, HeadPose, PhantomSample
from medcf.registry import PHANTOMS, lookup

SUBJECTS = [3, 1_000_011, 4_000_002]


def pixels(sample: PhantomSample) -> np.ndarray:
    """The image as 8-bit integers."""
    return np.rint(sample.image * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("subject", "pose", "digest"),
    [
        (7, HeadPose(), "6ab22392a06e9108210327944240938acd254395ea5ddf0dd1f4a3374448c283"),
        (
            2_000_001,
            HeadPose(tilt=18, roll=4, shadow=0.3),
            "315581883640da4aeaafed0501f41841913468265995771b651bcbfe7b0a94cf",
        ),
    ],
)
def test_pixels_are_the_same_on_every_machine(subject: int, pose: HeadPose, digest: str) -> None:
    assert hashlib.sha256(pixels(FetalHead(subject).render(pose, seed=3)).tobytes()).hexdigest() == digest


def test_image_is_quantized_to_eight_bits_and_uses_their_range() -> None:
    image = FetalHead(5).render().image
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, pixels(FetalHead(5).render()).astype(np.float32) / np.float32(255))
    assert image.min() == 0.0
    assert image.max() > 0.9


def test_speckle_changes_with_the_rendering_and_truth_does_not() -> None:
    head = FetalHead(11)
    first, second = head.render(seed=1), head.render(seed=2)
    assert (first.image != second.image).mean() > 0.4
    np.testing.assert_array_equal(first.segmentation, second.segmentation)
    assert (first.concepts, first.hc_mm) == (second.concepts, second.hc_mm)
    # The head, its texture and the scanner stay: the two look alike after the speckle is averaged out.
    smooth = [ndimage.gaussian_filter(sample.image, 1.5) for sample in (first, second)]
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.95


def test_two_heads_differ_more_than_two_planes_of_one_head() -> None:
    masks = {(s, tilt): FetalHead(s).render(HeadPose(tilt=tilt)).segmentation > 0 for s in SUBJECTS for tilt in (0, 14)}
    filled = {key: ndimage.binary_fill_holes(mask) for key, mask in masks.items()}

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return float(2 * (a & b).sum() / (a.sum() + b.sum()))

    for subject in SUBJECTS:
        own = overlap(filled[subject, 14], filled[subject, 0])
        assert own > 0.95
        assert own > max(overlap(filled[subject, 14], filled[other, 0]) for other in SUBJECTS if other != subject)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_standard_plane_shows_thalami_and_cavum_and_a_tilted_one_the_fossa(subject: int) -> None:
    head = FetalHead(subject)
    standard, tilted = head.render(), head.render(HeadPose(tilt=24))
    assert standard.label == 1
    assert set(np.unique(standard.segmentation)) == {0, 1, 2, 3}
    assert tilted.label == 0
    assert (tilted.segmentation == 4).sum() > 200
    assert (tilted.segmentation == 3).sum() == 0
    assert tilted.concepts["fossa_absent"] < 0.1 < 0.9 < standard.concepts["fossa_absent"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_structures_look_as_their_labels_say(subject: int) -> None:
    sample = FetalHead(subject).render()
    image, labels = sample.image, sample.segmentation
    brain = ndimage.binary_erosion(ndimage.binary_fill_holes(labels == 1), iterations=6) & (labels == 0)
    inner = ndimage.binary_erosion(labels == 2, iterations=2)
    assert image[labels == 1].mean() > 2 * image[brain].mean()
    assert image[inner].mean() < image[brain].mean()


def test_quality_and_labels_follow_the_pose_smoothly() -> None:
    head = FetalHead(21)
    tilts = np.arange(0.0, 30.0, 0.5)
    qualities = np.array([head.assess(HeadPose(tilt=float(tilt)))[1] for tilt in tilts])
    assert np.abs(np.diff(qualities)).max() < 0.06
    assert qualities[0] > 0.95
    assert qualities[-1] < 0.55
    masks = [head.render(HeadPose(tilt=float(tilt))).segmentation for tilt in (10.0, 10.2)]
    assert (masks[0] != masks[1]).mean() < 0.01


def test_each_fault_lowers_its_own_concept() -> None:
    head = FetalHead(8)
    best = head.assess(head.standard_pose())[0]
    faults = {
        "thalami": HeadPose(offset=14),
        "cavum": HeadPose(tilt=-15),
        "fossa_absent": HeadPose(tilt=24),
        "symmetry": HeadPose(roll=14),
        "skull": HeadPose(shadow=1.0, shift=(-30.0, 0.0)),
        "magnification": HeadPose(offset=-34),
        "window": HeadPose(penetration=0.3),
    }
    assert list(faults) == list(CONCEPTS) == list(best)
    for name, pose in faults.items():
        concepts, quality = head.assess(pose)
        assert concepts[name] < best[name] - 0.1, name
        assert quality < head.assess(head.standard_pose())[1]
        assert all(0.0 <= score <= 1.0 for score in concepts.values())


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_biometry_agrees_with_the_picture(subject: int, tilt: float) -> None:
    sample = FetalHead(subject).render(HeadPose(tilt=tilt), size=(280, 340), spacing=0.5)
    filled = ndimage.binary_fill_holes(sample.segmentation == 1)
    region = max(regionprops(label(filled)), key=lambda part: part.area)
    a, b = region.axis_major_length / 2 * 0.5, region.axis_minor_length / 2 * 0.5
    perimeter = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    assert sample.hc_mm == pytest.approx(perimeter, rel=0.015)
    assert sample.bpd_mm == pytest.approx(2 * b, rel=0.02)
    # And with an ellipse fitted to the outline by least squares, as a sonographer places it.
    edge = filled & ~ndimage.binary_erosion(filled)
    fit = EllipseModel.from_estimate(np.argwhere(edge).astype(float))
    a, b = (float(length) * 0.5 for length in fit.axis_lengths)
    assert sample.hc_mm == pytest.approx(np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b))), rel=0.03)


def test_spacing_scales_the_picture_and_not_the_head() -> None:
    head = FetalHead(31)
    fine, coarse = head.render(), head.render(size=(64, 80), spacing=1.75)
    assert fine.hc_mm == coarse.hc_mm
    assert fine.quality == coarse.quality
    areas = [(sample.segmentation == 2).sum() * sample.spacing_mm[0] ** 2 for sample in (fine, coarse)]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)


@pytest.mark.parametrize("wanted", [0, 1])
def test_sampled_poses_have_the_wanted_label_and_spread(wanted: int) -> None:
    rng = np.random.default_rng(0)
    head = FetalHead(13)
    poses = [head.sample_pose(rng, wanted) for _ in range(30)]
    qualities = np.array([head.assess(pose)[1] for pose in poses])
    assert ((qualities >= QUALITY_THRESHOLD) == bool(wanted)).all()
    assert head.render(poses[0]).label == wanted
    if wanted == 0:
        assert qualities.std() > 0.08
        assert max(pose.tilt for pose in poses) > 20
    with pytest.raises(ValueError, match="label must be 0"):
        head.sample_pose(rng, 2)


def test_overlays_add_marks_and_keep_the_rest() -> None:
    head = FetalHead(17)
    plain, marked = head.render(), head.render(overlays=True)
    changed = plain.image != marked.image
    assert 0.003 < changed.mean() < 0.1
    assert marked.image[changed].max() > 0.9
    np.testing.assert_array_equal(plain.segmentation, marked.segmentation)


def test_poor_window_darkens_the_far_side_only_in_the_picture() -> None:
    head = FetalHead(19)
    good, poor = head.render(), head.render(replace(head.standard_pose(), penetration=0.4))
    far = slice(90, 128)
    assert poor.image[far].mean() < 0.8 * good.image[far].mean()
    np.testing.assert_array_equal(good.segmentation, poor.segmentation)


def test_the_registry_names_it() -> None:
    assert lookup(PHANTOMS, "fetal_head") is FetalHead
