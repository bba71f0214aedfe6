# SPDX-License-Identifier: Apache-2.0
"""SYNTHETIC on the face of an image."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medcf.inference.drawing import font

__all__ = ["draw_banner"]

WORD = "SYNTHETIC"
_HEIGHT, _WIDEST = 1 / 14, 0.9  # of the image: the letters' height, and the most that the word may take of its width
_LEAST = 7  # pixels


def draw_banner(stored: NDArray[Any], dark: Any, bright: Any) -> NDArray[Any]:
    """Write SYNTHETIC along the upper edge, bright on dark.

    Args:
        stored: (rows, columns).
        dark: stored value of the background.
        bright: stored value of the letters.

    Returns:
        A copy with the word.
    """
    letters, box = _letters(*stored.shape)
    result = stored.copy()
    result[box] = dark
    result[letters] = bright
    return result


@cache
def _letters(rows: int, columns: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where the letters are, and the box behind them, both (rows, columns)."""
    size = max(int(min(rows, columns) * _HEIGHT), _LEAST)
    while size > _LEAST and font(size, bold=True).getlength(WORD) > _WIDEST * columns:
        size -= 1
    face = font(size, bold=True)
    picture = Image.new("L", (columns, rows))
    draw = ImageDraw.Draw(picture)
    place = (columns / 2, max(size // 4, 1))
    draw.text(place, WORD, fill=255, font=face, anchor="ma")
    left, top, right, bottom = draw.textbbox(place, WORD, font=face, anchor="ma")
    box = np.zeros((rows, columns), bool)
    margin = max(size // 6, 1)
    first, last = max(int(left) - margin, 0), int(right) + margin
    box[max(int(top) - margin, 0) : int(bottom) + margin, first:last] = True
    return np.asarray(picture) > 127, box
