# SPDX-License-Identifier: Apache-2.0
"""What a panel says, of pictures and of volumes, and that its colors have fixed units."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import (
    GAP,
    LABEL_COLORS,
    Canvas,
    color_bar,
    colored_difference,
    colored_segmentation,
    colored_spread,
    gray,
)
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


def seeded(result, **row):
    """The result with the outcome of four seeds: the mean changes half as much, the spread is 0.1 where it changes."""
    low, high = result.window
    change = result.difference / 2
    row = result.row | {"num_seeds": 4, "seeds_flipped": 0.75, "confidence_expected": 0.62} | row
    return replace(
        result, expected=result.original + change * (high - low), expected_difference=change,
        spread=np.where(result.difference > 0, 0.1, 0).astype(np.float32), row=row,
    )  # fmt: skip


def words(panel) -> list[str]:
    return [text.words for text in panel.texts]


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
    panel = draw_panel(replace(result, row=result.row | {"out_of_distribution": True}))
    (warning,) = (text for text in panel.texts if "OUT OF DISTRIBUTION" in text.words)
    red, green, blue = panel.image.getpixel(warning.box[:2])
    assert red > 128 > green + blue


def test_unchanged_and_failed_flips_are_said():
    assert any("returned unchanged" in text for text in words(draw_panel(make_result(unchanged=True, flipped=False))))
    assert any("NOT flipped" in text for text in words(draw_panel(make_result(flipped=False))))


def test_what_was_asked_for_in_words_is_said_and_a_kept_class_is_no_failure():
    kept = make_result()
    kept = replace(kept, row={**kept.row, "flipped": False})
    (line,) = (text for text in words(draw_panel(kept, prompt="opacity on the left")) if "opacity on the left" in text)
    assert "asked for: opacity on the left" in line
    assert "class kept" in line
    assert "NOT flipped" not in line
    assert any("asked for: nothing" in text for text in words(draw_panel(kept, prompt="")))


def test_writer_saves_a_picture(tmp_path):
    PanelWriter(["NSP", "SP"], ["skull"])(make_result(), tmp_path)
    picture = np.asarray(Image.open(tmp_path / "panel.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 10


@pytest.mark.parametrize("make", [make_result, make_volume])
def test_an_input_that_came_back_unchanged_is_not_called_synthetic(make):
    result = make()
    same = {"counterfactual": result.original, "difference": np.zeros_like(result.difference)}
    for row in (result.row | {"unchanged": True, "flipped": False}, result.row | {"flipped": False}):
        texts = words(draw_panel(replace(result, **same, trajectory=result.trajectory[:1], row=row)))
        assert not any("SYNTHETIC" in text for text in texts)
        assert any("not for diagnosis" in text for text in texts)


@pytest.mark.parametrize("make", [make_result, make_volume])
def test_a_panel_says_that_novelty_was_not_tested(make):
    result = make()
    assert not any("novelty" in text for text in words(draw_panel(result)))
    result.row.pop("out_of_distribution")
    assert any("novelty NOT tested" in text for text in words(draw_panel(result)))


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("make", [make_result, make_volume])
def test_text_stays_on_the_panel_and_off_its_neighbors_however_long_it_is(make, seeds):
    names = ["a class with a very long name that nobody reads in one line", "another one with as long a name as that"]
    result = make() if seeds == 1 else seeded(make())
    result = replace(result, case="folder__" * 30, row=result.row | {"out_of_distribution": True})
    if result.original.ndim == 2:  # the smallest tiles: a narrow image with many iterates
        several = ("expected", "expected_difference", "spread") if seeds > 1 else ()
        parts = {name: getattr(result, name)[:9] for name in ("original", "counterfactual", "difference", *several)}
        path = np.tile(result.trajectory[:2, :9], (3, 1, 1))
        result = replace(result, **parts, trajectory=path, segmentation=result.segmentation[:, :9], spacing=None)
    panel = draw_panel(result, class_names=names, label_names=names * 2)
    assert any("…" in text.words for text in panel.texts)
    boxes = [text.box for text in panel.texts]
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= panel.image.width
        assert bottom <= panel.image.height
    lines = [text for text in panel.texts if len(text.words) > 3 and text.words != "SYNTHETIC"]
    for one, other in itertools.combinations(lines, 2):
        a, b = one.box, other.box
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        upright = {"axial", "coronal", "sagittal"} & {one.words, other.words}
        assert apart or upright, (one, other)


def test_the_color_bar_is_the_overlay_so_that_both_have_one_zero():
    canvas = Canvas(30, 240)
    color_bar(canvas, 0, 0, 240, -0.5, 0.5)
    bar = np.asarray(canvas.image, dtype=float)[4, 50:190] / 255
    overlay = colored_difference(np.full((1, 140), 0.5), np.linspace(-0.5, 0.5, 140)[None], 0.5)[0]
    np.testing.assert_allclose(bar, overlay, atol=0.02)
    np.testing.assert_allclose(bar[70], 0.4, atol=0.03)  # gray, as an image is where nothing differs


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
    pictures = [np.asarray(draw_panel(result).image) / 255 for result in (
        make_volume(), make_volume(mask=np.zeros((20, 24, 16), bool)))]  # fmt: skip
    green = [((p[..., 1] > p[..., 0] + 0.3) & (p[..., 1] > p[..., 2] + 0.3)).sum() for p in pictures]
    assert green[0] > 100
    assert green[1] == 0


@pytest.mark.parametrize("make", [make_result, make_volume])
def test_after_several_seeds_a_panel_says_how_many_there_were_how_many_flip_and_what_the_units_are(make):
    one, several = words(draw_panel(make())), words(draw_panel(seeded(make())))
    assert not any("seed" in text for text in one)
    assert "expected: mean of 4 seeds" in several
    assert "75 % of the seeds flip; the mean has p = 0.62" in several
    assert any("standard deviation" in text for text in several)
    assert several.count("SYNTHETIC") > one.count("SYNTHETIC")  # the mean was generated, too
    assert several.count("fraction of the full intensity range") == 3  # of both differences, and of the spread
    assert [several.count(end) for end in ("-0.5", "+0.5", "0", "0.25")] == [2, 2, 1, 1]


def test_the_tiles_of_several_seeds_are_the_mean_its_difference_and_the_spread():
    result = replace(seeded(make_result()), segmentation=None)
    panel = draw_panel(result)
    size = (panel.image.width - GAP) // 6 - GAP
    picture = np.asarray(panel.image, dtype=float) / 255
    center = [picture[64 + 120, GAP + column * (size + GAP) + size // 2 - 8] for column in range(6)]
    wanted = [
        gray(np.full((1, 1), 0.4 + 0.15)),
        colored_difference(np.full((1, 1), 0.4), np.full((1, 1), 0.15), 0.5),
        colored_spread(np.full((1, 1), 0.4), np.full((1, 1), 0.1), 0.25),
    ]
    for found, color in zip(center[3:], wanted, strict=True):
        np.testing.assert_allclose(found, color[0, 0], atol=0.02)


def test_an_image_that_came_back_unchanged_has_no_share_of_seeds_that_flip():
    result = seeded(make_result(unchanged=True, flipped=False), seeds_flipped=0.0)
    assert not any("of the seeds flip" in text for text in words(draw_panel(result)))


def test_the_bar_of_a_spread_begins_at_the_image_and_ends_at_full_color():
    canvas = Canvas(30, 240)
    color_bar(canvas, 0, 0, 240, 0.0, 0.25)
    bar = np.asarray(canvas.image, dtype=float)[4, 50:190] / 255
    overlay = colored_spread(np.full((1, 140), 0.5), np.linspace(0, 0.25, 140)[None], 0.25)[0]
    np.testing.assert_allclose(bar, overlay, atol=0.02)
    np.testing.assert_allclose(bar[0], 0.4, atol=0.02)
    assert [text.words for text in canvas.texts[:2]] == ["0", "0.25"]
