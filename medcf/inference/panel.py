# SPDX-License-Identifier: Apache-2.0
"""One picture a case: input, counterfactual, signed difference in fixed units, segmentation, path, flags.

All tiles are laid out in one RGB array and drawn by one ``imshow``: a panel takes about a tenth of a second, ten times
less than a grid of matplotlib axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries
from skimage.transform import resize

from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import (
    DPI,
    GAP,
    HEAD,
    LABEL_COLORS,
    LINE,
    TILE_HEIGHT,
    color_bar,
    colored_difference,
    colored_segmentation,
    gray,
    new_axes,
    paste,
    stamp,
    title_lines,
)
from medcf.inference.slices import Slice, cropped, focus, slices_through

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PanelWriter", "draw_panel"]

_PIXELS_PER_MM = 1.6
_TALLEST = 300  # pixels of a tile of a volume
_LOWEST, _NARROWEST = 80, 230  # pixels of a volume's row, for its letters, and of a column, for its title
_OUTLINE = np.array([0.35, 0.85, 0.45])
_WHITE: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "fontsize": 9}


class PanelWriter:
    """Writes ``panel.png`` of a case.

    Args:
        class_names: names of the classes, for the title.
        label_names: names of segmentation labels 1, 2, ...
        limit: end of the color bar, in fractions of the full intensity range; the same for every case.
    """

    filename = "panel.png"

    def __init__(self, class_names: Sequence[str] = (), label_names: Sequence[str] = (), limit: float = 0.5) -> None:
        self.class_names = tuple(class_names)
        self.label_names = tuple(label_names)
        self.limit = limit

    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Draw the panel of ``result`` into ``folder``."""
        figure = draw_panel(result, class_names=self.class_names, label_names=self.label_names, limit=self.limit)
        figure.savefig(folder / self.filename, dpi=DPI, pil_kwargs={"compress_level": 3})


def draw_panel(
    result: CaseResult, *, class_names: Sequence[str] = (), label_names: Sequence[str] = (), limit: float = 0.5
) -> Figure:
    """Draw a case: a row for each plane, of a picture one, and below it the path there.

    Args:
        result: the case.
        class_names: names of the classes.
        label_names: names of segmentation labels 1, 2, ...
        limit: difference at the ends of the color bar.

    Returns:
        A figure that belongs to no window.
    """
    result = cropped(result)
    flat = result.original.ndim == 2
    voxel = focus(result)
    planes = slices_through(result, voxel)
    titles = ["input" if result.region is None else "input (what the network saw)", "counterfactual"]
    titles.append("difference (counterfactual - input)")
    if result.segmentation is not None:
        titles += ["segmentation of the input", "segmentation of the counterfactual"]
    sizes = _sizes(planes, flat)
    width = max(size[1] for size in sizes) if flat else max(*(size[1] for size in sizes), _NARROWEST)
    left_of = [GAP + (0 if flat else 22) + index * (width + GAP) for index in range(len(titles))]
    banner = LINE + 6 if result.row.get("out_of_distribution") else 0
    top = HEAD + banner + (0 if flat else LINE)
    heights = [size[0] if flat else max(size[0], _LOWEST) for size in sizes]
    bottom = top + sum(heights) + GAP * len(planes)
    strip = _strip_size(result, sizes[0], left_of[-1] + width - left_of[0]) if flat else (0, 0)
    canvas = np.full((bottom + 3 * LINE + (strip[0] + 2 * LINE if flat else 0), left_of[-1] + width + GAP, 3), 0.08)
    axes = new_axes(canvas.shape)
    for left, title in zip(left_of, titles, strict=True):
        axes.text(left + width / 2, bottom + 8 if flat else top - 10, title, **_WHITE)
    for plane, size, room in zip(planes, sizes, heights, strict=True):
        _draw_plane(canvas, axes, result, plane, (top, room, size), (left_of, width), limit)
        top += room + GAP
    color_bar(axes, canvas, bottom + (LINE if flat else 4), left_of[2], width, limit)
    if flat:
        _legend(
            axes, label_names if result.segmentation is not None else (), bottom + LINE + 12, left_of[3 % len(left_of)]
        )
        _draw_path(canvas, axes, result, planes[0], strip, bottom + 3 * LINE)
    else:
        _notes(axes, result, voxel, bottom + 8)
    title_lines(axes, result, class_names, canvas.shape[1])
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    return axes.figure  # type: ignore[return-value]


def _sizes(planes: Sequence[Slice], flat: bool) -> list[tuple[int, int]]:
    """Height and width of the planes in pixels: pictures are equally high, planes of a volume to one scale."""
    if flat:
        height, width = planes[0].size_mm
        return [(TILE_HEIGHT, int(np.clip(round(TILE_HEIGHT * width / height), TILE_HEIGHT // 2, 3 * TILE_HEIGHT)))]
    scale = min(_PIXELS_PER_MM, _TALLEST / max(max(plane.size_mm) for plane in planes))
    return [(max(round(scale * h), 8), max(round(scale * w), 8)) for h, w in (plane.size_mm for plane in planes)]


def _draw_plane(
    canvas: NDArray,
    axes: Axes,
    result: CaseResult,
    plane: Slice,
    place: tuple[int, int, tuple[int, int]],
    columns: tuple[Sequence[int], int],
    limit: float,
) -> None:
    """Draw a row of tiles: ``place`` is its top, its height and the size of a tile in it."""
    top, room, (height, inner) = place
    left_of, width = columns
    upper = top + (room - height) // 2
    tiles = [gray(plane.image), gray(plane.counterfactual), colored_difference(plane.image, plane.difference, limit)]
    if result.segmentation is not None:
        pictures = (plane.image, plane.counterfactual)
        labels = [plane.cut(each) for each in result.segmentation]
        tiles += [colored_segmentation(picture, each) for picture, each in zip(pictures, labels, strict=True)]
    for index, (left, tile) in enumerate(zip(left_of, tiles, strict=True)):
        inset = left + (width - inner) // 2
        paste(canvas, tile, upper, inset, height, inner)
        if index == 2 and plane.mask is not None:
            _outline(canvas[upper : upper + height, inset : inset + inner], plane.mask)
        if result.original.ndim == 3:
            _letters(axes, plane.letters, top, inset, room, inner)
        if index in (1, 4):
            stamp(axes, left + width / 2, top + (5 if result.original.ndim == 2 else 16), 10)
    if result.original.ndim == 3:
        axes.text(GAP + 8, top + room / 2, plane.plane, rotation=90, **_WHITE)


def _path(result: CaseResult) -> Sequence[NDArray[np.float32]]:
    """The input and every iterate that is known on the image's own matrix."""
    return [result.original, result.counterfactual] if result.trajectory is None else list(result.trajectory)


def _strip_size(result: CaseResult, size: tuple[int, int], total: int) -> tuple[int, int]:
    """Height and width of the small tiles of the path, which share the width of the panel."""
    width = min(size[1], (total + GAP) // len(_path(result)) - GAP)
    return round(size[0] * width / size[1]), width


def _draw_path(canvas: NDArray, axes: Axes, result: CaseResult, plane: Slice, size: tuple[int, int], top: int) -> None:
    """Draw the input and every iterate with its confidence."""
    confidences = result.row.get("confidences") or []
    low, high = result.window
    for index, image in enumerate(_path(result)):
        left = GAP + index * (size[1] + GAP)
        paste(canvas, gray((plane.cut(image) - low) / (high - low)), top, left, *size)
        text = "input" if index == 0 else f"iterate {index}"
        if index < len(confidences) and confidences[index] is not None:
            text += f": {confidences[index]:.2f}"
        axes.text(left + size[1] / 2, top + size[0] + 12, text, **{**_WHITE, "fontsize": 8})
        if index:
            stamp(axes, left + size[1] / 2, top + 4, 7)


def _outline(tile: NDArray, mask: NDArray[np.bool_]) -> None:
    """Draw the border of the subject onto a tile."""
    inside = resize(mask.astype(np.float32), tile.shape[:2], order=1) > 0.5
    tile[find_boundaries(inside, mode="inner")] = _OUTLINE


def _letters(axes: Axes, letters: Sequence[str], top: int, left: int, height: int, width: int) -> None:
    middle = (left + width / 2, top + height / 2)
    places = ((left + 7, middle[1]), (left + width - 7, middle[1]), (middle[0], top + 8), (middle[0], top + height - 8))
    for letter, (x, y) in zip(letters, places, strict=True):
        axes.text(x, y, letter, ha="center", va="center", color="#9fd3ff", fontsize=8, weight="bold")


def _legend(axes: Axes, names: Sequence[str], y: float, left: float) -> None:
    for name, color in zip(names, np.resize(LABEL_COLORS, (len(names), 3)), strict=True):
        axes.text(left, y, f"■ {name}", color=tuple(color), fontsize=9, va="center")
        left += 28 + 7 * len(name)


def _notes(axes: Axes, result: CaseResult, voxel: Sequence[int], y: float) -> None:
    world = np.asarray(result.affine) @ [*voxel, 1.0]
    where = f"slices through x {world[0]:.0f}, y {world[1]:.0f}, z {world[2]:.0f} mm (RAS)"
    what = "where the difference is largest" if np.any(result.difference) else "(no difference)"
    style: dict[str, Any] = {"color": "#bbbbbb", "fontsize": 8, "va": "center"}
    axes.text(GAP, y, f"{where}, {what}", **style)
    axes.text(GAP, y + LINE - 4, "radiological convention: the patient's right (R) is on the left", **style)
    if result.mask is not None:
        axes.text(GAP, y + 2 * LINE - 8, "green: outline of the brain mask", **style)
