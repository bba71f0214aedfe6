# SPDX-License-Identifier: Apache-2.0
"""A picture of a store: some images of each class or prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.synthetic_store import SyntheticStore
from medcf.inference.drawing import GAP, LINE, Canvas, gray, stamp

__all__ = ["draw_overview"]

_TILE = 128  # pixels
_MOST = 24  # conditions


def draw_overview(store: SyntheticStore, path: str | Path, columns: int = 8) -> None:
    """Draw the first images of each class, or of each prompt that names none, in a row of their own.

    Args:
        store: images (1, H, W), or volumes (1, X, Y, Z), of which the middle axial slice is shown.
        path: PNG file to write.
        columns: images of each.
    """
    rows: dict[str, list[int]] = {}
    for index, row in enumerate(store.rows):
        rows.setdefault(row["class_name"] or row["caption"], []).append(index)
    shown = dict(list(rows.items())[:_MOST])
    width = GAP + columns * (_TILE + GAP)
    canvas = Canvas(LINE + GAP + len(shown) * (_TILE + LINE + GAP), width)
    canvas.text(width / 2, LINE / 2 + 4, "SYNTHETIC images, not for diagnosis", width=width, size=15, bold=True)
    for number, (name, members) in enumerate(shown.items()):
        top = LINE + GAP + number * (_TILE + LINE + GAP)
        for column, index in enumerate(members[:columns]):
            left = GAP + column * (_TILE + GAP)
            tile = _slice(store[index]["image"].numpy())
            height = round(_TILE * min(1.0, tile.shape[0] / tile.shape[1]))
            side = round(_TILE * min(1.0, tile.shape[1] / tile.shape[0]))
            canvas.paste(gray((tile + 1) / 2), top, left, height, side)
            stamp(canvas, left + side / 2, top, side, size=10)
        told = f"{name} ({len(members)})"
        canvas.text(GAP, top + _TILE + LINE / 2, told, width=width - 2 * GAP, size=14, anchor="lm")
    canvas.save(path)


def _slice(image: NDArray[Any]) -> NDArray[Any]:
    """Return a picture (H, W), of a volume the middle axial slice with the front at the top."""
    picture = image[0]
    return picture if picture.ndim == 2 else np.rot90(picture[..., picture.shape[-1] // 2])
