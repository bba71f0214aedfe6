# SPDX-License-Identifier: Apache-2.0
"""Signed distances and what is painted by them: shared by the ultrasound phantoms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "coverage", "ellipsoid", "mix"]

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


def mix(below: Array, above: Array | float, share: Array) -> Array:
    """Paint ``above`` over ``below`` with opacity ``share``."""
    return below + (above - below) * share
