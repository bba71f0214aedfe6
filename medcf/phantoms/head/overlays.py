# SPDX-License-Identifier: Apache-2.0
"""Burned-in text and calipers, as drawn by scanners over the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medcf.phantoms.base import PhantomSample

__all__ = ["burn_in"]

_YELLOW = (255, 220, 40)
_WHITE = (235, 235, 235)


def burn_in(sample: PhantomSample, color: bool = False) -> NDArray[np.uint8]:
    """Draw text in the corners and calipers across the head.

    Args:
        sample: the image and its truth; calipers are placed at the ends of the head's axes in the segmentation.
        color: whether to return RGB with yellow calipers and text instead of gray.

    Returns:
        (H, W) or, in color, (H, W, 3) uint8 image.
    """
    gray = np.rint(sample.image * 255.0).astype(np.uint8)
    canvas = Image.fromarray(gray).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "1"  # no antialiasing: identical pixels with every build of FreeType
    font = ImageFont.load_default_imagefont()
    mark = _YELLOW if color else _WHITE
    height, width = gray.shape
    draw.text((2, 1), f"HC {sample.hc_mm / 10:.1f}cm", fill=mark, font=font)
    draw.text((width - 38, 1), f"{sample.subject % 997:03d}/26", fill=_WHITE, font=font)
    draw.text((2, height - 12), "Zoom 1", fill=_WHITE, font=font)
    for row, col in _ends(sample.segmentation):
        draw.line((col - 2, row, col + 2, row), fill=mark)
        draw.line((col, row - 2, col, row + 2), fill=mark)
    if color:
        return np.asarray(canvas, dtype=np.uint8).copy()
    return np.asarray(canvas, dtype=np.uint8)[..., 0].copy()


def _ends(segmentation: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return the four ends (row, column) of the axes of the labeled head, empty if there is none."""
    rows, cols = np.nonzero(segmentation)
    if len(rows) < 20:
        return []
    points = np.stack([rows - rows.mean(), cols - cols.mean()])
    _, vectors = np.linalg.eigh(points @ points.T)
    ends = []
    for axis in vectors.T:
        along = points[0] * axis[0] + points[1] * axis[1]
        across = np.abs(points[0] * axis[1] - points[1] * axis[0]) < 1.5
        if across.any():
            for index in (np.where(across, along, np.inf).argmin(), np.where(across, along, -np.inf).argmax()):
                ends.append((int(rows[index]), int(cols[index])))
    return ends
