# SPDX-License-Identifier: Apache-2.0
"""The echoes of a cut through a head: skull and brain over what lies around them."""

from __future__ import annotations

import numpy as np

from medcf.phantoms.head.anatomy import HeadAnatomy
from medcf.phantoms.head.poses import Plane
from medcf.phantoms.shapes import Array, coverage
from medcf.phantoms.ultrasound import BeamGrid

__all__ = ["paint_head"]


def paint_head(
    anatomy: HeadAnatomy,
    plane: Plane,
    grid: BeamGrid,
    outline: tuple[Array, tuple[Array, Array, Array]],
    layers: Array,
    scatter: Array,
    specular: Array,
) -> tuple[Array, Array, Array]:
    """Paint a head on beams.

    Args:
        anatomy: the head.
        plane: the cut.
        grid: the beams.
        outline: distance in mm to the skull's outer surface on the beams and its normal, see `HeadAnatomy.outline`.
        layers: texture of the tissue in front of the head, which makes the skull's brightness uneven.
        scatter: amplitude of diffuse scatter outside the head; changed.
        specular: amplitude of interfaces outside the head; changed.

    Returns:
        Scatter and interfaces with the head, and the fraction of bone in each sample.
    """
    head, normal = outline
    x, y, z = plane.points(grid.row, grid.col)
    inner = head < -0.5 * anatomy.skull
    points = x[inner], y[inner], z[inner]
    parts = anatomy.structures(*points, head=head[inner])
    echoes, lines = anatomy.echoes(*points, parts)
    inside = coverage(parts.brain, 1.0)
    scatter[inner] = 0.004 + (echoes - 0.004) * inside
    specular[inner] = lines * inside
    bone = coverage(np.abs(head + 0.5 * anatomy.skull) - 0.5 * anatomy.skull, 0.8)
    facing = plane.incidence(normal, grid.beam_row, grid.beam_col)
    specular += bone * (0.012 + 0.95 * facing**5) * np.clip(1.0 + 0.25 * layers, 0.45, 1.6)
    scatter = scatter + (0.012 - scatter) * bone
    return scatter, specular, bone
