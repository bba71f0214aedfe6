# SPDX-License-Identifier: Apache-2.0
"""A volume's panel hangs as radiologists expect, whatever the order of its voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from medcf.inference.case_result import CaseResult
from medcf.inference.volume_panel import focus, slices_through
from medcf.report import VolumePanelWriter, draw_volume_panel

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


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


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


def test_panel_names_classes_confidences_directions_and_that_it_is_synthetic():
    texts = words(draw_volume_panel(make_result(), class_names=["CN", "AD"]))
    assert "head_7" in texts
    assert any("CN → AD" in text and "p(AD) 0.12 → 0.97" in text for text in texts)
    assert texts.count("SYNTHETIC") == 3
    assert any("not for diagnosis" in text for text in texts)
    assert any("radiological convention" in text for text in texts)
    assert {"R", "L", "A", "P", "S", "I"} <= set(texts)


def test_a_case_without_difference_has_a_panel(tmp_path):
    result = make_result()
    same = replace(result, difference=np.zeros_like(result.difference), counterfactual=result.original)
    assert any("no difference" in text for text in words(draw_volume_panel(same)))
    VolumePanelWriter(["CN", "AD"])(same, tmp_path)
    picture = np.asarray(Image.open(tmp_path / "panel.png"))
    assert picture.std() > 10


def test_the_brain_is_outlined_on_the_difference():
    pictures = [draw_volume_panel(result).axes[0].images[0].get_array() for result in (
        make_result(), make_result(mask=np.zeros(SHAPE, bool)))]  # fmt: skip
    green = [((p[..., 1] > p[..., 0] + 0.3) & (p[..., 1] > p[..., 2] + 0.3)).sum() for p in pictures]
    assert green[0] > 100
    assert green[1] == 0


def test_only_unfamiliar_volumes_get_the_warning():
    known, strange = (make_result(row=ROW | {"out_of_distribution": flag}) for flag in (False, True))
    assert not any("OUT OF DISTRIBUTION" in text for text in words(draw_volume_panel(known)))
    assert any("OUT OF DISTRIBUTION" in text for text in words(draw_volume_panel(strange)))
