# SPDX-License-Identifier: Apache-2.0
"""Biometry of an outline: the ellipse that sonographers fit, from its moments."""

from __future__ import annotations

import numpy as np

from medcf.phantoms.head.anatomy import Array

__all__ = ["biometry"]


def biometry(contour: tuple[Array, Array]) -> tuple[float, float]:
    """Return head circumference and BPD in mm from the ellipse with the outline's second moments.

    The circumference is Ramanujan's first approximation (1914) of the ellipse's perimeter; BPD is its minor axis,
    outer to outer.

    Args:
        contour: rows and columns in mm of a closed polygon.

    Returns:
        Head circumference and BPD in mm.
    """
    row, col = contour
    row = row - row.mean()
    col = col - col.mean()
    nrow, ncol = np.roll(row, -1), np.roll(col, -1)
    cross = col * nrow - ncol * row
    area = cross.sum() / 2
    m_row, m_col = ((row + nrow) * cross).sum() / (6 * area), ((col + ncol) * cross).sum() / (6 * area)
    rr = ((row * row + row * nrow + nrow * nrow) * cross).sum() / (12 * area) - m_row**2
    cc = ((col * col + col * ncol + ncol * ncol) * cross).sum() / (12 * area) - m_col**2
    mixed = ((col * nrow + 2 * col * row + 2 * ncol * nrow + ncol * row) * cross).sum() / (24 * area) - m_row * m_col
    spread = np.sqrt(((rr - cc) / 2) ** 2 + mixed**2)
    major = 2 * np.sqrt((rr + cc) / 2 + spread)
    minor = 2 * np.sqrt((rr + cc) / 2 - spread)
    ramanujan = 3 * (major + minor) - np.sqrt((3 * major + minor) * (major + 3 * minor))
    return float(np.pi * ramanujan), float(2 * minor)
