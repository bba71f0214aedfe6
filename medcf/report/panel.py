# SPDX-License-Identifier: Apache-2.0
"""One picture a case: input, path, counterfactual, signed difference in fixed units, segmentation, flags.

All tiles are laid out in one RGB array and drawn by one ``imshow``: a panel takes about a tenth of a second, ten times
less than a grid of matplotlib axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from medcf.engines.case_result import CaseResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PanelWriter", "colored_difference", "colored_segmentation", "draw_panel"]

LABEL_COLORS = np.array([[0.95, 0.85, 0.35], [0.95, 0.45, 0.25], [0.30, 0.80, 0.95], [0.45, 0.85, 0.40]])
"""Colors of segmentation labels 1, 2, ...; they repeat when there are more labels."""

_HEIGHT = 240  # tile height in pixels
_GAP = 8
_HEAD = 64  # title
_LINE = 22  # a line of text under a tile
_DPI = 100
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
        figure.savefig(folder / self.filename, dpi=_DPI, pil_kwargs={"compress_level": 3})


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
        ("input" if result.region is None else "input (what the network saw)", _gray(result.original)),
        ("counterfactual", _gray(result.counterfactual)),
        ("difference (counterfactual - input)", colored_difference(result.original, result.difference, limit)),
    ]
    if result.segmentation is not None:
        top += [
            ("segmentation of the input", colored_segmentation(result.original, result.segmentation[0])),
            ("segmentation of the counterfactual", colored_segmentation(result.counterfactual, result.segmentation[1])),
        ]
    total = len(top) * (width + _GAP) - _GAP
    count = len(result.trajectory)
    small_width = min(width, (total + _GAP) // count - _GAP)
    small_height = round(_HEIGHT * small_width / width)
    banner = int(bool(result.row.get("out_of_distribution")))
    first = _HEAD + banner * (_LINE + 6)
    second = first + _HEIGHT + 2 * _LINE + _GAP
    canvas = np.full((second + small_height + 2 * _LINE, total + 2 * _GAP, 3), 0.08)

    axes = _axes(canvas.shape)
    for index, (title, tile) in enumerate(top):
        left = _GAP + index * (width + _GAP)
        _paste(canvas, tile, first, left, _HEIGHT, width)
        axes.text(left + width / 2, first + _HEIGHT + 15, title, ha="center", color="white", fontsize=9)
    confidences = result.row.get("confidences") or []
    for index, image in enumerate(result.trajectory):
        left = _GAP + index * (small_width + _GAP)
        _paste(canvas, _gray(image), second, left, small_height, small_width)
        text = "input" if index == 0 else f"iterate {index}"
        if index < len(confidences) and confidences[index] is not None:
            text += f": {confidences[index]:.2f}"
        axes.text(left + small_width / 2, second + small_height + 15, text, ha="center", color="white", fontsize=8)
        if index:
            _stamp(axes, left + small_width / 2, second + 4, 7)
    for index in (1, 4)[: 1 + (result.segmentation is not None)]:
        _stamp(axes, _GAP + index * (width + _GAP) + width / 2, first + 5, 10)
    _color_bar(axes, canvas, first + _HEIGHT + _LINE + 3, _GAP + 2 * (width + _GAP), width, limit)
    _legend(axes, label_names, first + _HEIGHT + _LINE + 12, _GAP + 3 * (width + _GAP)) if len(top) > 3 else None
    _titles(axes, result, class_names, canvas.shape[1])
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    return axes.figure  # type: ignore[return-value]


def colored_difference(image: NDArray[np.floating], difference: NDArray[np.floating], limit: float) -> NDArray:
    """Lay a signed difference over a gray image: red brighter, blue darker, opaque at ``limit`` and beyond.

    Args:
        image: (H, W) in [0, 1].
        difference: (H, W), signed.
        limit: difference of full color.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    strength = np.clip(difference / limit, -1, 1)
    alpha = np.abs(strength)[..., None]
    return _gray(image) * 0.8 * (1 - alpha) + _diverging(strength) * alpha


def colored_segmentation(image: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray:
    """Lay labels over a gray image, each in its color, half transparent.

    Args:
        image: (H, W) in [0, 1].
        labels: (H, W), 0 is background.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    rgb = _gray(image)
    inside = labels > 0
    rgb[inside] = 0.5 * rgb[inside] + 0.5 * LABEL_COLORS[(labels[inside].astype(int) - 1) % len(LABEL_COLORS)]
    return rgb


def _gray(image: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.repeat(np.clip(image, 0, 1).astype(np.float64)[..., None], 3, axis=2)


def _diverging(strength: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map [-1, 1] to blue, white, red; both ends are equally far from gray also for the color-blind."""
    red, blue = np.array([0.95, 0.25, 0.15]), np.array([0.20, 0.50, 1.0])
    weight = np.abs(strength)[..., None]
    return np.where(strength[..., None] > 0, red, blue) * weight + (1 - weight)


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
    return int(np.clip(round(_HEIGHT * width * column / (height * row)), _HEIGHT // 2, 3 * _HEIGHT))


def _paste(canvas: NDArray, tile: NDArray, top: int, left: int, height: int, width: int) -> None:
    shrinks = tile.shape[0] > height
    canvas[top : top + height, left : left + width] = resize(
        tile, (height, width), order=1, mode="edge", anti_aliasing=shrinks
    )


def _axes(shape: tuple[int, ...]) -> Axes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(shape[1] / _DPI, shape[0] / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return axes


def _stamp(axes: Axes, x: float, y: float, size: int) -> None:
    box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    axes.text(x, y, "SYNTHETIC", ha="center", va="top", color="#ffd54a", fontsize=size, weight="bold", bbox=box)


def _color_bar(axes: Axes, canvas: NDArray, top: int, left: int, width: int, limit: float) -> None:
    bar = _diverging(np.linspace(-1, 1, width - 100))
    canvas[top : top + 8, left + 50 : left + 50 + len(bar)] = bar
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "va": "center"}
    axes.text(left + 46, top + 4, f"-{limit:g}", ha="right", **style)
    axes.text(left + width - 46, top + 4, f"+{limit:g}", ha="left", **style)
    axes.text(left + width / 2, top + 16, "fraction of the full intensity range", ha="center", **style)


def _legend(axes: Axes, names: Sequence[str], y: float, left: float) -> None:
    for name, color in zip(names, np.resize(LABEL_COLORS, (len(names), 3)), strict=True):
        axes.text(left, y, f"■ {name}", color=tuple(color), fontsize=9, va="center")
        left += 28 + 7 * len(name)


def _titles(axes: Axes, result: CaseResult, class_names: Sequence[str], width: int) -> None:
    row = result.row

    def name(label: object) -> str:
        return class_names[label] if isinstance(label, int) and label < len(class_names) else f"class {label}"

    before, after = row.get("label_before"), row.get("label_after")
    parts = [f"{name(before)} → {name(after)}"] if before is not None else []
    if row.get("target") is not None and row.get("confidence_before") is not None:
        target = name(row["target"])
        parts.append(f"p({target}) {row['confidence_before']:.2f} → {row['confidence_after']:.2f}")
    if row.get("unchanged"):
        parts.append("already of the target class, returned unchanged")
    elif "flipped" in row:
        parts.append("flipped" if row["flipped"] else "NOT flipped")
    axes.text(_GAP, 16, result.case, color="white", fontsize=12, weight="bold", va="center")
    axes.text(_GAP, 42, "      ".join(parts), color="white", fontsize=11, va="center")
    notice = "SYNTHETIC counterfactual, not for diagnosis"
    axes.text(width - _GAP, 16, notice, color="#ffd54a", fontsize=11, weight="bold", ha="right", va="center")
    if row.get("out_of_distribution"):
        text = "OUT OF DISTRIBUTION: unlike anything the model was trained on; do not interpret"
        box = {"facecolor": "#b00020", "edgecolor": "none", "pad": 4}
        axes.text(width / 2, _HEAD + 8, text, color="white", fontsize=12, weight="bold", ha="center", va="center",
                  bbox=box)  # fmt: skip
