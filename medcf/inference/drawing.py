# SPDX-License-Identifier: Apache-2.0
"""Common drawing tools for pictures of cases: a canvas with tiles and fitted text, stamps, color bars and titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from medcf.inference.case_result import CaseResult

__all__ = [
    "GAP",
    "HEAD",
    "LABEL_COLORS",
    "LINE",
    "TILE_HEIGHT",
    "Canvas",
    "Text",
    "color_bar",
    "colored_difference",
    "colored_segmentation",
    "colored_spread",
    "floor_of",
    "font",
    "gray",
    "stamp",
    "title_lines",
    "warnings_of",
]

LABEL_COLORS = np.array([[0.95, 0.85, 0.35], [0.95, 0.45, 0.25], [0.30, 0.80, 0.95], [0.45, 0.85, 0.40]])
"""Colors of segmentation labels 1, 2, ...; they repeat for further labels."""

TILE_HEIGHT = 240  # pixels
GAP = 8
HEAD = 64  # title
LINE = 22  # a line of text under a tile

_YELLOW = "#ffd54a"
_VIOLET = np.array([0.80, 0.35, 1.0])
_SMALLEST = 9  # pixels per letter; longer text is shortened in the middle
_LEAST_STAMP = 72  # pixels, width of SYNTHETIC in the smallest letters


@dataclass(frozen=True)
class Text:
    """Words on a canvas, and their position.

    Attributes:
        words: the words as shown.
        box: left, top, right and bottom edges in pixels.
        background: color behind the letters; None if there is none.
    """

    words: str
    box: tuple[int, int, int, int]
    background: str | None = None


class Canvas:
    """An RGB picture to which tiles and words are added; ``texts`` records the words.

    Args:
        height: height in pixels.
        width: width in pixels.
        background: background color.
    """

    def __init__(self, height: int, width: int, background: str = "#141414") -> None:
        self.image = Image.new("RGB", (width, height), background)
        self.texts: list[Text] = []
        self._draw = ImageDraw.Draw(self.image)

    def paste(self, tile: NDArray[np.floating], top: int, left: int, height: int, width: int) -> None:
        """Paste a tile (h, w, 3) in [0, 1] onto the canvas, resized to ``height`` and ``width`` pixels."""
        levels = np.rint(np.clip(tile, 0, 1) * 255).astype(np.uint8)
        self.image.paste(Image.fromarray(levels).resize((width, height), Image.Resampling.BILINEAR), (left, top))

    def outline(self, mask: NDArray[np.bool_], top: int, left: int, height: int, width: int, color: str) -> None:
        """Draw the border of a mask (h, w), resized in the same way as by `paste`."""
        shape = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
        border = find_boundaries(np.asarray(shape) > 127, mode="inner")
        self.image.paste(color, (left, top), Image.fromarray(border.astype(np.uint8) * 255))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        width: float,
        size: int = 12,
        anchor: str = "mm",
        color: str = "white",
        bold: bool = False,
        background: str | None = None,
    ) -> Text:
        """Write one line, smaller or shortened if it would exceed ``width`` pixels.

        Args:
            x: pixel position of the point named by ``anchor``.
            y: pixel position of the same point.
            words: text of the line.
            width: available width in pixels.
            size: height of the letters in pixels.
            anchor: as in Pillow: l, m or r horizontally, and a, m or d vertically.
            color: color of the letters.
            bold: whether the letters are bold.
            background: color of a box behind the letters.

        Returns:
            The text written, and its position.
        """
        while size > _SMALLEST and font(size, bold).getlength(words) > width:
            size -= 1
        words = _shortened(words, width, font(size, bold))
        style: dict[str, Any] = {"font": font(size, bold), "anchor": anchor}
        left, top, right, bottom = self._draw.textbbox((x, y), words, **style)
        if background is not None:
            left, top, right, bottom = left - 3, top - 2, right + 3, bottom + 2
            self._draw.rectangle((left, top, right, bottom), fill=background)
        self._draw.text((x, y), words, fill=color, **style)
        written = Text(words, (round(left), round(top), round(right), round(bottom)), background)
        self.texts.append(written)
        return written

    def upright(self, x: float, y: float, words: str, height: float) -> None:
        """Write a line upward, centered at a point."""
        side = Canvas(LINE, round(height))
        side.text(height / 2, LINE / 2, words, width=height)
        self.image.paste(side.image.rotate(90, expand=True), (round(x - LINE / 2), round(y - height / 2)))
        self.texts += side.texts

    def save(self, path: Path | str) -> None:
        """Write a PNG file."""
        self.image.save(path, format="PNG", compress_level=3)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which has arrows and Greek letters, without importing matplotlib."""
    found = find_spec("matplotlib")
    assert found is not None  # matplotlib is a requirement of medcf
    assert found.origin is not None
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def _shortened(words: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """Shorten a line in the middle until it fits."""
    if font.getlength(words) <= width:
        return words
    kept = len(words)
    while kept > 1 and font.getlength(words[: (kept + 1) // 2] + "…" + words[len(words) - kept // 2 :]) > width:
        kept -= 1
    return words[: (kept + 1) // 2] + "…" + words[len(words) - kept // 2 :]


def colored_difference(image: NDArray[np.floating], difference: NDArray[np.floating], limit: float) -> NDArray:
    """Overlay a signed difference on a gray image: red is brighter, blue darker, opaque at ``limit`` and beyond.

    Args:
        image: (H, W) in [0, 1].
        difference: (H, W), signed.
        limit: difference at full color.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    strength = np.clip(difference / limit, -1, 1)
    alpha = np.abs(strength)[..., None]
    return gray(image) * 0.8 * (1 - alpha) + _diverging(strength) * alpha


def colored_segmentation(image: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray:
    """Overlay labels on a gray image, each in its color, half transparent.

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


def colored_spread(image: NDArray[np.floating], spread: NDArray[np.floating], limit: float) -> NDArray:
    """Overlay a spread on a gray image: violet, which is neither color of a difference, opaque at ``limit`` and beyond.

    Args:
        image: (H, W) in [0, 1].
        spread: (H, W), not negative.
        limit: spread at full color.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    alpha = np.clip(spread / limit, 0, 1)[..., None]
    return gray(image) * 0.8 * (1 - alpha) + _VIOLET * alpha


def gray(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return an image (H, W) in [0, 1] as RGB (H, W, 3)."""
    return np.repeat(np.clip(image, 0, 1).astype(np.float64)[..., None], 3, axis=2)


def _diverging(strength: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map [-1, 1] to blue, white, red; both ends are equally far from gray, including for color-blind viewers."""
    red, blue = np.array([0.95, 0.25, 0.15]), np.array([0.20, 0.50, 1.0])
    weight = np.abs(strength)[..., None]
    return np.where(strength[..., None] > 0, red, blue) * weight + (1 - weight)


def stamp(canvas: Canvas, x: float, y: float, width: float, size: int = 14) -> None:
    """Write SYNTHETIC centered below a point, within ``width`` pixels if it is still legible."""
    canvas.text(
        x,
        y + 2,
        "SYNTHETIC",
        width=max(width - 8, _LEAST_STAMP),
        size=size,
        anchor="ma",
        color=_YELLOW,
        bold=True,
        background="#202020",
    )


def color_bar(
    canvas: Canvas, top: int, left: int, width: int, low: float, high: float, *, floor: float | None = None
) -> None:
    """Draw a color bar in an area ``width`` wide and 22 high: for signed differences, or from 0 on for a spread.

    It is the overlay itself on a medium gray: without a difference, both show the image. A line under it reaches from
    minus to plus the ``floor``, what a space adds where nothing changed.
    """
    steps = np.linspace(low, high, max(width - 100, 20))[None]
    overlay = colored_difference if low < 0 else colored_spread
    bar = overlay(np.full_like(steps, 0.5), steps, high)
    canvas.paste(bar, top, left + (width - steps.size) // 2, 8, steps.size)
    if floor is not None:
        reach = max(round(min(floor, high) / (high - low) * steps.size), 1)
        canvas.paste(np.ones((1, 1, 3)), top + 9, left + width // 2 - reach, 2, 2 * reach)
    edge, sign = (width - steps.size) // 2 - 4, "+" if low < 0 else ""
    canvas.text(left + edge, top + 4, f"{low:g}", width=edge, size=11, anchor="rm")
    canvas.text(left + width - edge, top + 4, f"{sign}{high:g}", width=edge, size=11, anchor="lm")
    canvas.text(left + width / 2, top + 16, "fraction of the full intensity range", width=width, size=11)


def title_lines(canvas: Canvas, result: CaseResult, class_names: Sequence[str], prompt: str | None = None) -> None:
    """Write the case, what was asked for, the change of its class, the notice, and a warning if needed."""
    row, width = result.row, canvas.image.width

    def name(label: object) -> str:
        return class_names[label] if isinstance(label, int) and label < len(class_names) else f"class {label}"

    before, after = row.get("label_before"), row.get("label_after")
    parts = [] if prompt is None else [f"asked for: {prompt or 'nothing'}"]
    parts += [f"{name(before)} → {name(after)}"] if before is not None else []
    if row.get("target") is not None and row.get("confidence_before") is not None:
        parts.append(f"p({name(row['target'])}) {row['confidence_before']:.2f} → {row['confidence_after']:.2f}")
    if row.get("unchanged"):
        parts.append("already of the target class, returned unchanged")
    elif "flipped" in row and prompt is not None:  # a finding may be put in without another class
        parts.append("class changed" if row["flipped"] else "class kept")
    elif "flipped" in row:
        parts.append("flipped" if row["flipped"] else "NOT flipped")
    if (floor := floor_of(row)) is not None and not row.get("unchanged"):
        parts.append(f"change {row['edit_rms']:.3f}, floor {floor:.4f}, autoencoder {row['floor']:.3f} (RMS)")
    if "out_of_distribution" not in row:
        parts.append("novelty NOT tested")
    notice = "SYNTHETIC counterfactual, not for diagnosis" if result.synthetic else "unchanged input, not for diagnosis"
    right = canvas.text(width - GAP, 16, notice, width=width / 2, size=15, anchor="rm", color=_YELLOW, bold=True).box[0]
    canvas.text(GAP, 16, result.case, width=right - 3 * GAP, size=17, anchor="lm", bold=True)
    canvas.text(GAP, 42, "      ".join(parts), width=width - 2 * GAP, size=15, anchor="lm")
    style: dict[str, Any] = {"size": 17, "bold": True, "background": "#b00020"}
    for number, warning in enumerate(warnings_of(row)):
        canvas.text(width / 2, HEAD + 8 + number * (LINE + 6), warning, width=width - 4 * GAP, **style)


def warnings_of(row: Mapping[str, Any]) -> list[str]:
    """Return the warnings that a case's scores ask for."""
    words = {
        "out_of_distribution": "OUT OF DISTRIBUTION: unlike the training data; do not interpret",
        "below_floor": "BELOW THE FLOOR: the change is smaller than the autoencoder's own; do not interpret",
    }
    return [warning for name, warning in words.items() if row.get(name)]


def floor_of(row: Mapping[str, Any]) -> float | None:
    """Return the floor that counts for a case, in fractions of the full intensity range; None in pixels."""
    return row.get("difference_floor", row.get("floor"))
