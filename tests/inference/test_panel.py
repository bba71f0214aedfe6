# SPDX-License-Identifier: Apache-2.0
"""What a panel says, of pictures and of volumes, and that its colors have fixed units."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import LABEL_COLORS, colored_difference, colored_segmentation
from medcf.inference.panel import PanelWriter, draw_panel


def make_result(**row):
    image = np.full((80, 64), 0.4, np.float32)
    difference = np.zeros_like(image)
    difference[30:50, 20:40] = 0.3
    values = {
        "target": 1, "label_before": 0, "label_after": 1, "confidence_before": 0.1, "confidence_after": 0.93,
        "flipped": True, "unchanged": False, "confidences": [0.1, 0.6, 0.93], "out_of_distribution": False,
    }  # fmt: skip
    return CaseResult(
        case="head_7", path=Path("head_7.png"), original=image, counterfactual=image + difference,
        difference=difference, trajectory=np.stack([image, image + difference / 2, image + difference]),
        affine=np.diag([-1.0, -1.0, 1.0, 1.0]),
        source_format="raster", spacing=(1.0, 1.0), segmentation=np.zeros((2, 80, 64), np.uint8), row=values | row,
    )  # fmt: skip


def make_volume(**changes):
    """A RAS volume of 0 to 800 with its brain in the middle and one change."""
    image, difference = np.zeros((20, 24, 16), np.float32), np.zeros((20, 24, 16), np.float32)
    image[3:17, 4:20, 3:13] = 400
    difference[13:16, 15:18, 10:13] = 0.3
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (-19, -35, -30)
    counterfactual = image + 800 * difference
    row = make_result().row | {"confidence_before": 0.12, "confidence_after": 0.97}
    result = CaseResult(
        "head_7", Path("head_7.nii.gz"), image, counterfactual, difference, np.stack([image, counterfactual]),
        affine, "nifti", (2.0, 3.0, 4.0), window=(0.0, 800.0), mask=image > 0, row=row,
    )  # fmt: skip
    return replace(result, **changes)


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_panel_names_case_classes_and_confidences():
    texts = words(draw_panel(make_result(), class_names=["NSP", "SP"], label_names=["skull"]))
    assert "head_7" in texts
    line = next(text for text in texts if "flipped" in text)
    assert "NSP → SP" in line
    assert "p(SP) 0.10 → 0.93" in line
    assert "iterate 2: 0.93" in texts
    assert any("skull" in text for text in texts)


def test_every_synthetic_tile_says_so():
    texts = words(draw_panel(make_result()))
    assert texts.count("SYNTHETIC") == 4  # counterfactual, its segmentation, two iterates
    assert any("not for diagnosis" in text for text in texts)


@pytest.mark.parametrize("make", [make_result, make_volume])
def test_only_unfamiliar_inputs_get_the_warning(make):
    result = make()
    assert not any("OUT OF DISTRIBUTION" in text for text in words(draw_panel(result)))
    figure = draw_panel(replace(result, row=result.row | {"out_of_distribution": True}))
    warning = next(text for text in figure.axes[0].texts if "OUT OF DISTRIBUTION" in text.get_text())
    red, green, blue, _ = warning.get_bbox_patch().get_facecolor()
    assert red > 0.5 > green + blue


def test_unchanged_and_failed_flips_are_said():
    assert any("returned unchanged" in text for text in words(draw_panel(make_result(unchanged=True, flipped=False))))
    assert any("NOT flipped" in text for text in words(draw_panel(make_result(flipped=False))))


def test_writer_saves_a_picture_quickly(tmp_path):
    writer = PanelWriter(["NSP", "SP"], ["skull"])
    writer(make_result(), tmp_path)
    started = time.process_time()
    writer(make_result(), tmp_path)
    assert time.process_time() - started < 1.5
    picture = np.asarray(Image.open(tmp_path / "panel.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def test_tall_and_wide_images_make_panels(tmp_path):
    result = make_result()
    for shape in ((200, 40), (40, 200)):
        image = np.zeros(shape, np.float32)
        same = dict.fromkeys(("original", "counterfactual", "difference"), image)
        trajectory = np.zeros((6, *shape), np.float32)
        PanelWriter()(replace(result, trajectory=trajectory, segmentation=None, spacing=None, **same), tmp_path)


def test_difference_colors_do_not_depend_on_the_case():
    image = np.full((4, 4), 0.5)
    small, large = np.zeros((4, 4)), np.zeros((4, 4))
    small[0, 0] = large[0, 0] = 0.1
    large[3, 3] = 0.5
    np.testing.assert_array_equal(
        colored_difference(image, small, 0.5)[0, 0], colored_difference(image, large, 0.5)[0, 0]
    )
    brighter, darker = colored_difference(image, np.array([[0.4, -0.4]] * 4)[:, :2].repeat(2, 1), 0.5)[0, [0, 3]]
    assert brighter[0] > brighter[2]
    assert darker[2] > darker[0]
    np.testing.assert_allclose(colored_difference(image, np.zeros((4, 4)), 0.5), 0.4)


def test_labels_have_their_own_colors_and_background_none():
    labels = np.array([[0, 1, 2, 5]])
    rgb = colored_segmentation(np.zeros((1, 4)), labels)
    assert not rgb[0, 0].any()
    np.testing.assert_allclose(rgb[0, 1], LABEL_COLORS[0] / 2)
    assert not np.allclose(rgb[0, 1], rgb[0, 2])
    np.testing.assert_allclose(rgb[0, 3], rgb[0, 1])  # the colors repeat


@pytest.mark.parametrize("missing", ["out_of_distribution", "confidences"])
def test_a_row_may_lack_what_was_not_computed(missing):
    result = make_result()
    result.row.pop(missing)
    draw_panel(result)


def test_a_panel_shows_what_the_network_saw():
    result = make_result()
    part = replace(result, region=(0, 0, 40, 32))
    assert any("what the network saw" in text for text in words(draw_panel(part)))
    whole = replace(result, region=(0, 0, 80, 64))
    assert "input" in words(draw_panel(whole))


def test_the_panel_of_a_volume_names_classes_confidences_directions_and_that_it_is_synthetic():
    texts = words(draw_panel(make_volume(), class_names=["CN", "AD"]))
    assert "head_7" in texts
    assert any("CN → AD" in text and "p(AD) 0.12 → 0.97" in text for text in texts)
    assert texts.count("SYNTHETIC") == 3
    assert any("not for diagnosis" in text for text in texts)
    assert any("radiological convention" in text for text in texts)
    assert {"R", "L", "A", "P", "S", "I"} <= set(texts)


def test_a_volume_without_difference_has_a_panel(tmp_path):
    result = make_volume()
    same = replace(result, difference=np.zeros_like(result.difference), counterfactual=result.original)
    assert any("no difference" in text for text in words(draw_panel(same)))
    PanelWriter(["CN", "AD"])(same, tmp_path)
    picture = np.asarray(Image.open(tmp_path / "panel.png"))
    assert picture.std() > 10


def test_the_brain_is_outlined_on_the_difference():
    pictures = [draw_panel(result).axes[0].images[0].get_array() for result in (
        make_volume(), make_volume(mask=np.zeros((20, 24, 16), bool)))]  # fmt: skip
    green = [((p[..., 1] > p[..., 0] + 0.3) & (p[..., 1] > p[..., 2] + 0.3)).sum() for p in pictures]
    assert green[0] > 100
    assert green[1] == 0
