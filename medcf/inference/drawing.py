# SPDX-License-Identifier: Apache-2.0
"""What the pictures of cases share: gray and colored tiles on one canvas, stamps, color bars and titles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from medcf.inference.case_result import CaseResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "DPI",
    "GAP",
    "HEAD",
    "LABEL_COLORS",
    "LINE",
    "TILE_HEIGHT",
    "color_bar",
    "colored_difference",
    "colored_segmentation",
    "diverging",
    "gray",
    "new_axes",
    "paste",
    "stamp",
    "title_lines",
]

LABEL_COLORS = np.array([[0.95, 0.85, 0.35], [0.95, 0.45, 0.25], [0.30, 0.80, 0.95], [0.45, 0.85, 0.40]])
"""Colors of segmentation labels 1, 2, ...; they repeat when there are more labels."""

TILE_HEIGHT = 240  # pixels
GAP = 8
HEAD = 64  # title
LINE = 22  # a line of text under a tile
DPI = 100


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
    return gray(image) * 0.8 * (1 - alpha) + diverging(strength) * alpha


def colored_segmentation(image: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray:
    """Lay labels over a gray image, each in its color, half transparent.

    Args:
        image: (H, W) in [0, 1].
        labels: (H, W), 0 is background.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    rgb = gray(image)
    inside = labels > 0
    rgb[inside] = 0.5 * rgb[inside] + 0.5 * LABEL_COLORS[(labels[inside].astype(int) - 1) % len(LABEL_COLORS)]
    return rgb


def gray(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return an image (H, W) in [0, 1] as RGB (H, W, 3)."""
    return np.repeat(np.clip(image, 0, 1).astype(np.float64)[..., None], 3, axis=2)


def diverging(strength: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map [-1, 1] to blue, white, red; both ends are equally far from gray also for the color-blind."""
    red, blue = np.array([0.95, 0.25, 0.15]), np.array([0.20, 0.50, 1.0])
    weight = np.abs(strength)[..., None]
    return np.where(strength[..., None] > 0, red, blue) * weight + (1 - weight)


def paste(canvas: NDArray, tile: NDArray, top: int, left: int, height: int, width: int) -> None:
    """Lay a tile (h, w, 3) over the canvas (H, W, 3), resized to ``height`` and ``width`` pixels."""
    shrinks = tile.shape[0] > height
    canvas[top : top + height, left : left + width] = resize(
        tile, (height, width), order=1, mode="edge", anti_aliasing=shrinks
    )


def new_axes(shape: tuple[int, ...]) -> Axes:
    """Return axes that fill a figure of its own, a pixel a unit, for a canvas of this shape."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(shape[1] / DPI, shape[0] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return axes


def stamp(axes: Axes, x: float, y: float, size: int) -> None:
    """Write SYNTHETIC below a point, centered."""
    box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    axes.text(x, y, "SYNTHETIC", ha="center", va="top", color="#ffd54a", fontsize=size, weight="bold", bbox=box)


def color_bar(axes: Axes, canvas: NDArray, top: int, left: int, width: int, limit: float) -> None:
    """Draw the color bar of signed differences into a field ``width`` wide and 20 high."""
    bar = diverging(np.linspace(-1, 1, width - 100))
    canvas[top : top + 8, left + 50 : left + 50 + len(bar)] = bar
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "va": "center"}
    axes.text(left + 46, top + 4, f"-{limit:g}", ha="right", **style)
    axes.text(left + width - 46, top + 4, f"+{limit:g}", ha="left", **style)
    axes.text(left + width / 2, top + 16, "fraction of the full intensity range", ha="center", **style)


def title_lines(axes: Axes, result: CaseResult, class_names: Sequence[str], width: int) -> None:
    """Write the case, what became of its class, the notice, and the warning where one is due."""
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
    axes.text(GAP, 16, result.case, color="white", fontsize=12, weight="bold", va="center")
    axes.text(GAP, 42, "      ".join(parts), color="white", fontsize=11, va="center")
    notice = "SYNTHETIC counterfactual, not for diagnosis"
    axes.text(width - GAP, 16, notice, color="#ffd54a", fontsize=11, weight="bold", ha="right", va="center")
    if row.get("out_of_distribution"):
        text = "OUT OF DISTRIBUTION: unlike anything the model was trained on; do not interpret"
        box = {"facecolor": "#b00020", "edgecolor": "none", "pad": 4}
        axes.text(width / 2, HEAD + 8, text, color="white", fontsize=12, weight="bold", ha="center", va="center",
                  bbox=box)  # fmt: skip
