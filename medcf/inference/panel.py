# SPDX-License-Identifier: Apache-2.0
"""One picture per case: input, counterfactual, signed difference in fixed units, segmentation, seeds, trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import (
    GAP,
    HEAD,
    LABEL_COLORS,
    LINE,
    TILE_HEIGHT,
    Canvas,
    color_bar,
    colored_difference,
    colored_segmentation,
    colored_spread,
    floor_of,
    gray,
    stamp,
    title_lines,
    warnings_of,
)
from medcf.inference.slices import Slice, cropped, focus, slices_through

__all__ = ["PanelWriter", "draw_panel"]

_PIXELS_PER_MM = 1.6
_TALLEST = 300  # pixels, tallest tile for a volume
_LOWEST, _NARROWEST = 80, 230  # pixels, lowest row (room for letters) and narrowest column (room for the title)
_SIDE = 22  # pixels next to a volume's rows, for the names of its planes
_OUTLINE = "#59d973"
_SPREAD = 0.5  # end of the spread's color bar, as a fraction of that of the difference


@dataclass(frozen=True)
class _Column:
    """A column of the panel.

    Attributes:
        title: words below it.
        draw: tile (H, W, 3) of a plane.
        synthetic: whether its image was generated.
        bar: first and last value of its color bar; None if it has none.
        note: words in place of a color bar.
        outline: mask (*spatial) of the case whose border is drawn; None draws the subject's on the difference.
    """

    title: str
    draw: Callable[[Slice], NDArray[np.floating]]
    synthetic: bool = False
    bar: tuple[float, float] | None = None
    note: str = ""
    outline: NDArray[np.bool_] | None = None


class PanelWriter:
    """Write ``panel.png`` for a case.

    Args:
        class_names: names of the classes, for the title.
        label_names: names of segmentation labels 1, 2, ...
        limit: end of the color bar, in fractions of the full intensity range; the same for every case.
        prompt: what the run asked for in words, for the title.
    """

    filename = "panel.png"

    def __init__(
        self,
        class_names: Sequence[str] = (),
        label_names: Sequence[str] = (),
        limit: float = 0.5,
        prompt: str | None = None,
    ) -> None:
        self.options: dict[str, Any] = {"class_names": tuple(class_names), "label_names": tuple(label_names)}
        self.options |= {"limit": limit, "prompt": prompt}

    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Draw the panel of ``result`` into ``folder``."""
        draw_panel(result, **self.options).save(folder / self.filename)


def draw_panel(
    result: CaseResult,
    *,
    class_names: Sequence[str] = (),
    label_names: Sequence[str] = (),
    limit: float = 0.5,
    prompt: str | None = None,
) -> Canvas:
    """Draw a case: one row per plane (a picture has one), and below it the trajectory.

    Args:
        result: the case.
        class_names: names of the classes.
        label_names: names of segmentation labels 1, 2, ...
        limit: difference at the ends of the color bar.
        prompt: what was asked for in words.

    Returns:
        The panel.
    """
    result = cropped(result)
    flat = result.original.ndim == 2
    voxel = focus(result)
    planes = slices_through(result, voxel)
    columns = _columns(result, limit)
    sizes = _sizes(planes, flat)
    width = max(size[1] for size in sizes) if flat else max(*(size[1] for size in sizes), _NARROWEST)
    left_of = [GAP + (0 if flat else _SIDE) + index * (width + GAP) for index in range(len(columns))]
    banner = (LINE + 6) * len(warnings_of(result.row))
    top = HEAD + banner + (0 if flat else LINE)
    heights = [size[0] if flat else max(size[0], _LOWEST) for size in sizes]
    bottom = top + sum(heights) + GAP * len(planes)
    strip = _strip_size(result, sizes[0], left_of[-1] + width - left_of[0]) if flat else (0, 0)
    canvas = Canvas(bottom + 3 * LINE + (strip[0] + 2 * LINE if flat else 0), left_of[-1] + width + GAP)
    for plane, size, room in zip(planes, sizes, heights, strict=True):
        _draw_plane(canvas, result, plane, (top, room, size), (left_of, width), columns)
        top += room + GAP
    under = bottom + (LINE if flat else 4)
    for left, column in zip(left_of, columns, strict=True):
        canvas.text(left + width / 2, bottom + 8 if flat else HEAD + banner + LINE - 10, column.title, width=width)
        if column.bar is not None:
            floor = floor_of(result.row) if column.bar[0] < 0 else None
            color_bar(canvas, under, left, width, *column.bar, floor=floor)
        if column.note:
            canvas.text(left + width / 2, under + 8, column.note, width=width, size=11)
    if flat:
        if result.segmentation is not None:
            _legend(canvas, label_names, bottom + LINE + 12, left_of[3], left_of[4] + width)
        _draw_path(canvas, result, planes[0], strip, bottom + 3 * LINE)
    else:
        _notes(canvas, result, voxel, bottom + 8, left_of[2] - 2 * GAP)
    title_lines(canvas, result, class_names, prompt)
    return canvas


def _columns(result: CaseResult, limit: float) -> list[_Column]:
    """Return the columns of a case: the result, its segmentation if known, and after several seeds what they say."""
    low, high = result.window
    columns = [
        _Column("input" if result.region is None else "input (what the network saw)", lambda plane: gray(plane.image)),
        _Column("counterfactual", lambda plane: gray(plane.counterfactual), synthetic=True),
        _Column(
            "difference (counterfactual - input)",
            lambda plane: colored_difference(plane.image, plane.difference, limit),
            bar=(-limit, limit),
        ),
    ]
    if (labels := result.segmentation) is not None:
        columns += [
            _Column("segmentation of the input", lambda plane: colored_segmentation(plane.image, plane.cut(labels[0]))),
            _Column(
                "segmentation of the counterfactual",
                lambda plane: colored_segmentation(plane.counterfactual, plane.cut(labels[1])),
                synthetic=True,
            ),
        ]
    if (attribution := result.attribution) is not None:
        columns.append(
            _Column(
                f"finding: {result.row['attribution_sign']}, in the organ",
                lambda plane: colored_difference(plane.image, plane.cut(attribution), limit),
                bar=(-limit, limit),
                outline=result.organ,
            )
        )
    expected, change, spread = result.expected, result.expected_difference, result.spread
    if expected is None or change is None or spread is None:
        return columns
    number = result.row.get("num_seeds")
    return [
        *columns,
        _Column(
            f"expected: mean of {number or 'all'} seeds",
            lambda plane: gray((plane.cut(expected) - low) / (high - low)),
            synthetic=True,
            note=_seeds_note(result),
        ),
        _Column(
            "expected difference",
            lambda plane: colored_difference(plane.image, plane.cut(change), limit),
            bar=(-limit, limit),
        ),
        _Column(
            "spread: standard deviation over seeds",
            lambda plane: colored_spread(plane.image, plane.cut(spread), _SPREAD * limit),
            bar=(0.0, _SPREAD * limit),
        ),
    ]


def _seeds_note(result: CaseResult) -> str:
    """Say how many seeds flip, and what the classifier makes of their mean."""
    share, confidence = (result.row.get(name) for name in ("seeds_flipped", "confidence_expected"))
    if share is None or result.row.get("unchanged"):
        return ""
    mean = "" if confidence is None else f"; the mean has p = {confidence:.2f}"
    return f"{100 * share:.0f} % of the seeds flip{mean}"


def _sizes(planes: Sequence[Slice], flat: bool) -> list[tuple[int, int]]:
    """Return height and width of the planes in pixels: pictures have equal height, planes of a volume equal scale."""
    if flat:
        height, width = planes[0].size_mm
        return [(TILE_HEIGHT, int(np.clip(round(TILE_HEIGHT * width / height), TILE_HEIGHT // 2, 3 * TILE_HEIGHT)))]
    scale = min(_PIXELS_PER_MM, _TALLEST / max(max(plane.size_mm) for plane in planes))
    return [(max(round(scale * h), 8), max(round(scale * w), 8)) for h, w in (plane.size_mm for plane in planes)]


def _draw_plane(
    canvas: Canvas,
    result: CaseResult,
    plane: Slice,
    place: tuple[int, int, tuple[int, int]],
    across: tuple[Sequence[int], int],
    columns: Sequence[_Column],
) -> None:
    """Draw a row of tiles: ``place`` gives its top, its height and the size of its tiles."""
    top, room, (height, inner) = place
    left_of, width = across
    upper = top + (room - height) // 2
    for index, (left, column) in enumerate(zip(left_of, columns, strict=True)):
        inset = left + (width - inner) // 2
        canvas.paste(column.draw(plane), upper, inset, height, inner)
        if index == 2 and plane.mask is not None:
            canvas.outline(plane.mask, upper, inset, height, inner, _OUTLINE)
        if column.outline is not None:
            canvas.outline(plane.cut(column.outline), upper, inset, height, inner, _OUTLINE)
        if result.original.ndim == 3:
            _letters(canvas, plane.letters, top, inset, room, inner)
        if column.synthetic and result.synthetic:
            stamp(canvas, left + width / 2, top + (3 if result.original.ndim == 2 else 16), inner)
    if result.original.ndim == 3:
        canvas.upright(GAP + 8, top + room / 2, plane.plane, room)


def _path(result: CaseResult) -> Sequence[NDArray[np.float32]]:
    """Return the input and every iterate known on the image's own matrix."""
    return [result.original, result.counterfactual] if result.trajectory is None else list(result.trajectory)


def _strip_size(result: CaseResult, size: tuple[int, int], total: int) -> tuple[int, int]:
    """Return height and width of the trajectory's small tiles, which share the width of the panel."""
    width = max(min(size[1], (total + GAP) // len(_path(result)) - GAP), 1)
    return max(round(size[0] * width / size[1]), 1), width


def _draw_path(canvas: Canvas, result: CaseResult, plane: Slice, size: tuple[int, int], top: int) -> None:
    """Draw the input and every iterate with its confidence."""
    confidences = result.row.get("confidences") or []
    low, high = result.window
    for index, image in enumerate(_path(result)):
        left = GAP + index * (size[1] + GAP)
        canvas.paste(gray((plane.cut(image) - low) / (high - low)), top, left, *size)
        words = "input" if index == 0 else f"iterate {index}"
        if index < len(confidences) and confidences[index] is not None:
            words += f": {confidences[index]:.2f}"
        canvas.text(left + size[1] / 2, top + size[0] + 12, words, width=size[1] + GAP - 2, size=11)
        if index and result.synthetic:
            stamp(canvas, left + size[1] / 2, top + 2, size[1], 10)


def _letters(canvas: Canvas, letters: Sequence[str], top: int, left: int, height: int, width: int) -> None:
    middle = (left + width / 2, top + height / 2)
    places = ((left + 7, middle[1]), (left + width - 7, middle[1]), (middle[0], top + 8), (middle[0], top + height - 8))
    for letter, (x, y) in zip(letters, places, strict=True):
        canvas.text(x, y, letter, width=20, size=11, color="#9fd3ff", bold=True)


def _legend(canvas: Canvas, names: Sequence[str], y: float, left: float, end: float) -> None:
    room = (end - left) / max(len(names), 1)
    for name, color in zip(names, np.resize(LABEL_COLORS, (len(names), 3)), strict=True):
        shade = "#" + "".join(f"{round(255 * part):02x}" for part in color)
        written = canvas.text(left, y, f"■ {name}", width=room - 2 * GAP, anchor="lm", color=shade)
        left = written.box[2] + 2 * GAP


def _notes(canvas: Canvas, result: CaseResult, voxel: Sequence[int], y: float, width: float) -> None:
    world = np.asarray(result.affine) @ [*voxel, 1.0]
    where = f"slices through x {world[0]:.0f}, y {world[1]:.0f}, z {world[2]:.0f} mm (RAS)"
    what = "where the difference is largest" if np.any(result.difference) else "(no difference)"
    lines = [f"{where}, {what}", "radiological convention: the patient's right (R) is on the left"]
    if result.mask is not None:
        lines.append("green: outline of the brain mask")
    for number, line in enumerate(lines):
        canvas.text(GAP, y + number * (LINE - 4), line, width=width, size=11, anchor="lm", color="#bbbbbb")
