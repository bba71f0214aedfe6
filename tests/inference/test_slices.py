# SPDX-License-Identifier: Apache-2.0
"""Slices hang as radiologists expect, whatever the order of the voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from medcf.inference.case_result import CaseResult
from medcf.inference.slices import cropped, focus, slices_through

SHAPE = (20, 24, 16)
CHANGE = (14, 16, 11)  # right, front, upper
ROW = {
    "target": 1, "label_before": 0, "label_after": 1, "confidence_before": 0.12, "confidence_after": 0.97,
    "flipped": True, "unchanged": False,
}  # fmt: skip


def make_result(orientation="RAS", **changes):
    """A RAS volume of 0 to 800 with its brain in the middle and one change, stored in another orientation."""
    image, difference = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    image[3:17, 4:20, 3:13] = 400
    difference[tuple(slice(n - 1, n + 2) for n in CHANGE)] = 0.3
    difference[0, 0, 0] = 5.0  # outside of the brain
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-19, -35, -30)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    image, difference, mask = (apply_orientation(a, turn) for a in (image, difference, image > 0))
    counterfactual = (image + 800 * difference).astype(np.float32)
    result = CaseResult(
        "head_7", Path("head_7.nii.gz"), image, counterfactual, difference, np.stack([image, counterfactual]),
        affine @ inv_ornt_aff(turn, SHAPE), "nifti", (2.0, 3.0, 4.0), window=(0.0, 800.0), mask=mask, row=dict(ROW),
    )  # fmt: skip
    return replace(result, **changes)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SLA"])
def test_slices_go_through_the_change_and_hang_alike_in_every_orientation(orientation):
    result = make_result(orientation)
    voxel = focus(result)
    world = result.affine @ [*voxel, 1]
    np.testing.assert_allclose(world[:3], np.diag([2, 3, 4]) @ CHANGE + (-19, -35, -30), atol=4)
    reference = slices_through(make_result(), focus(make_result()))
    for plane, same in zip(slices_through(result, voxel), reference, strict=True):
        np.testing.assert_array_equal(plane.difference, same.difference)
        np.testing.assert_array_equal(plane.image, same.image)
        assert plane.size_mm == pytest.approx(same.size_mm)


def test_the_patients_right_is_on_the_left_and_the_front_on_top():
    axial, coronal, sagittal = slices_through(make_result(), CHANGE)
    middles = {
        plane.plane: np.argwhere(plane.difference > 0.2).mean(0) / plane.difference.shape
        for plane in (axial, coronal, sagittal)
    }
    # the change lies to the right, in front and above
    assert (middles["axial"] < 0.5).all()
    assert (middles["coronal"] < 0.5).all()
    assert (middles["sagittal"] < 0.5).all()
    assert axial.letters == ("R", "L", "A", "P")
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    assert axial.image.max() == pytest.approx(0.5)  # 400 of 800


def test_without_a_mask_the_whole_volume_is_shown():
    result = make_result(mask=None)
    axial = slices_through(result, focus(result))[0]
    assert axial.difference.shape == (SHAPE[1], SHAPE[0])
    assert axial.size_mm == (72.0, 40.0)


@pytest.mark.parametrize("known", [True, False])
def test_a_picture_hangs_as_it_was_read_whatever_its_orientation(known):
    rows = np.random.default_rng(0).random((8, 6)).astype(np.float32)
    affine = np.diag([-0.5, -0.25, 1.0, 1.0]) if known else np.diag([-1.0, -1.0, 1.0, 1.0])
    turns = {"as read": (rows.T, affine), "transposed": (rows, affine[:, [1, 0, 2, 3]])}
    turns["flipped"] = (rows.T[::-1], affine * [[-1, 1, 1, 1]] * 1.0)
    for image, where in turns.values():
        result = CaseResult("a", Path("a.png"), image, image, image, image[None], where, "raster")
        (plane,) = slices_through(result, focus(result))
        np.testing.assert_array_equal(plane.image, rows)
        assert plane.size_mm == pytest.approx((2.0, 3.0) if known else (8, 6))


def test_a_picture_is_cut_to_what_the_network_saw_unless_that_is_nearly_all():
    image = np.random.default_rng(0).random((80, 64)).astype(np.float32)
    result = CaseResult(
        "a", Path("a.png"), image, image, image, image[None], np.eye(4), "raster",
        segmentation=np.zeros((2, 80, 64), np.uint8), region=(10, 5, 50, 35),
    )  # fmt: skip
    part = cropped(result)
    np.testing.assert_array_equal(part.original, image[10:50, 5:35])
    assert part.segmentation.shape == (2, 40, 30)
    assert part.trajectory.shape == (1, 40, 30)
    whole = cropped(replace(result, region=(0, 0, 80, 63)))
    assert whole.original is image
    assert whole.region is None
