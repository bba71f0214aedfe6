# SPDX-License-Identifier: Apache-2.0
"""One picture a case: input, path, counterfactual, signed difference in fixed units, segmentation, flags.

All tiles are laid out in one RGB array and drawn by one ``imshow``: a panel takes about a tenth of a second, ten times
less than a grid of matplotlib axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PanelWriter", "draw_panel"]

_WHOLE = 0.9  # share of the matrix that counts as all of it


class PanelWriter:
    """Writes ``panel.png`` of a case, as a writer of `CounterfactualEvaluator`'s case handler.

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
    result: CaseResult,
    *,
    class_names: Sequence[str] = (),
    label_names: Sequence[str] = (),
    limit: float = 0.5,
) -> Figure:
    """Draw one case.

    Args:
        result: the case.
        class_names: names of the classes.
        label_names: names of segmentation labels 1, 2, ...
        limit: difference at the ends of the color bar.

    Returns:
        A figure that belongs to no window.
    """
    result = _crop(result)
    width = _tile_width(result)
    top: list[tuple[str, NDArray[np.float64]]] = [
        ("input" if result.region is None else "input (what the network saw)", gray(result.original)),
        ("counterfactual", gray(result.counterfactual)),
        ("difference (counterfactual - input)", colored_difference(result.original, result.difference, limit)),
    ]
    if result.segmentation is not None:
        top += [
            ("segmentation of the input", colored_segmentation(result.original, result.segmentation[0])),
            ("segmentation of the counterfactual", colored_segmentation(result.counterfactual, result.segmentation[1])),
        ]
    total = len(top) * (width + GAP) - GAP
    count = len(result.trajectory)
    small_width = min(width, (total + GAP) // count - GAP)
    small_height = round(TILE_HEIGHT * small_width / width)
    banner = int(bool(result.row.get("out_of_distribution")))
    first = HEAD + banner * (LINE + 6)
    second = first + TILE_HEIGHT + 2 * LINE + GAP
    canvas = np.full((second + small_height + 2 * LINE, total + 2 * GAP, 3), 0.08)

    axes = new_axes(canvas.shape)
    for index, (title, tile) in enumerate(top):
        left = GAP + index * (width + GAP)
        paste(canvas, tile, first, left, TILE_HEIGHT, width)
        axes.text(left + width / 2, first + TILE_HEIGHT + 15, title, ha="center", color="white", fontsize=9)
    confidences = result.row.get("confidences") or []
    for index, image in enumerate(result.trajectory):
        left = GAP + index * (small_width + GAP)
        paste(canvas, gray(image), second, left, small_height, small_width)
        text = "input" if index == 0 else f"iterate {index}"
        if index < len(confidences) and confidences[index] is not None:
            text += f": {confidences[index]:.2f}"
        axes.text(left + small_width / 2, second + small_height + 15, text, ha="center", color="white", fontsize=8)
        if index:
            stamp(axes, left + small_width / 2, second + 4, 7)
    for index in (1, 4)[: 1 + (result.segmentation is not None)]:
        stamp(axes, GAP + index * (width + GAP) + width / 2, first + 5, 10)
    color_bar(axes, canvas, first + TILE_HEIGHT + LINE + 3, GAP + 2 * (width + GAP), width, limit)
    _legend(axes, label_names, first + TILE_HEIGHT + LINE + 12, GAP + 3 * (width + GAP)) if len(top) > 3 else None
    title_lines(axes, result, class_names, canvas.shape[1])
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    return axes.figure  # type: ignore[return-value]


def _crop(result: CaseResult) -> CaseResult:
    """Cut all images to what the network saw, where that is a smaller part of the matrix."""
    if result.region is None:
        return result
    top, left, bottom, right = result.region
    if (bottom - top) * (right - left) > _WHOLE * result.original.size:
        return replace(result, region=None)
    window = (..., slice(top, bottom), slice(left, right))
    images = {
        name: getattr(result, name)[window] for name in ("original", "counterfactual", "difference", "trajectory")
    }
    segmentation = None if result.segmentation is None else result.segmentation[window]
    return replace(result, segmentation=segmentation, **images)


def _tile_width(result: CaseResult) -> int:
    height, width = result.original.shape
    row, column = result.spacing or (1.0, 1.0)
    return int(np.clip(round(TILE_HEIGHT * width * column / (height * row)), TILE_HEIGHT // 2, 3 * TILE_HEIGHT))


def _legend(axes: Axes, names: Sequence[str], y: float, left: float) -> None:
    for name, color in zip(names, np.resize(LABEL_COLORS, (len(names), 3)), strict=True):
        axes.text(left, y, f"■ {name}", color=tuple(color), fontsize=9, va="center")
        left += 28 + 7 * len(name)
