# SPDX-License-Identifier: Apache-2.0
"""Signed distances and what is painted by them: shared by the ultrasound phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "coverage", "ellipse", "ellipsoid", "mix", "tube"]

Array = NDArray[np.float64]


def coverage(distance: Array, width: float) -> Array:
    """Return the fraction of a sample that is inside a surface.

    Args:
        distance: signed distance in mm, negative inside.
        width: mm over which the fraction falls from 1 to 0.

    Returns:
        Values in [0, 1], 0.5 on the surface.
    """
    return np.clip(0.5 - distance / width, 0.0, 1.0)


def ellipsoid(x: Array, y: Array, z: Array, rx: float, ry: float, rz: float) -> Array:
    """Return the signed distance to an ellipsoid at the origin, exact near its shortest axis, else to first order."""
    return (np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2) - 1.0) * min(rx, ry, rz)


def ellipse(x: Array, y: Array, center: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> Array:
    """Return the signed distance to an ellipse, to first order.

    Args:
        x: positions in mm.
        y: positions in mm.
        center: the ellipse's center (x, y) in mm.
        radii: its half axes along x and y in mm, before it is turned.
        turn: degrees by which it is turned from x to y.

    Returns:
        Distances in mm, negative inside.
    """
    cos, sin = float(np.cos(np.deg2rad(turn))), float(np.sin(np.deg2rad(turn)))
    dx, dy = x - center[0], y - center[1]
    u, v = (dx * cos + dy * sin) / radii[0], (dy * cos - dx * sin) / radii[1]
    length = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)
    return (length - 1.0) * length / np.maximum(slope, 1e-9)


def tube(x: Array, y: Array, path: Sequence[tuple[float, float]]) -> Array:
    """Return the distance in mm to a path of straight pieces; subtract a radius for a signed distance."""
    nearest = np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in pairwise(path):
        ux, uy = bx - ax, by - ay
        along = np.clip(((x - ax) * ux + (y - ay) * uy) / max(ux * ux + uy * uy, 1e-12), 0.0, 1.0)
        nearest = np.minimum(nearest, (x - ax - along * ux) ** 2 + (y - ay - along * uy) ** 2)
    return np.sqrt(nearest)


def mix(below: Array, above: Array | float, share: Array) -> Array:
    """Paint ``above`` over ``below`` with opacity ``share``."""
    return below + (above - below) * share
