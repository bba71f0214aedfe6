# SPDX-License-Identifier: Apache-2.0
"""The vessels of the lungs: branching trees from the hila, projected as thickness in mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from medcf.phantoms.chest.anatomy import Array

__all__ = ["VesselTree", "splat"]

_STEPS = 10  # points from one fork to the next
_HILA = ((-37.0, -2.0), (38.0, -10.0))
_CALIBERS = (1.1, 2.2)  # mm, radii up to which vessels are drawn fine and medium


@dataclass(frozen=True)
class VesselTree:
    """Points along the vessels of both lungs.

    Attributes:
        points: (N, 2) x and y in mm of an adult.
        radii: (N,) radius in mm.
        lengths: (N,) mm of vessel that each point stands for.
    """

    points: Array
    radii: Array
    lengths: Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> VesselTree:
        """Draw a subject's trees: vessels leave the hilum in all lateral directions and fork until they are thin."""
        angle = np.concatenate([np.linspace(-1.35, 1.45, 8) + rng.normal(0.0, 0.12, 8) for _ in _HILA])
        side = np.repeat((-1.0, 1.0), 8)
        start = np.repeat(np.array(_HILA), 8, axis=0)
        radius = rng.uniform(2.6, 3.9, 16) * np.where(angle > 0, 1.15, 0.85)  # blood flows to the bases
        points, radii = [], []
        length = 34.0
        while len(radius):
            step = length * rng.uniform(0.7, 1.3, len(radius)) / _STEPS
            turns = angle[:, None] + rng.normal(0.0, 0.03, len(radius))[:, None] * np.arange(_STEPS)
            moves = np.stack([side[:, None] * np.cos(turns), np.sin(turns)], axis=-1) * step[:, None, None]
            path = start[:, None] + np.cumsum(moves, axis=1)
            points.append(path.reshape(-1, 2))
            radii.append(np.repeat(np.stack([radius, step], axis=1), _STEPS, axis=0))
            share = rng.uniform(0.3, 0.5, len(radius))
            bend = rng.uniform(0.15, 0.5, (2, len(radius)))
            start, side = np.tile(path[:, -1], (2, 1)), np.tile(side, 2)
            angle = np.concatenate([turns[:, -1] - bend[0] * (0.5 + share), turns[:, -1] + bend[1] * (1.5 - share)])
            radius = np.concatenate([radius * (1.0 - share) ** 0.45, radius * share**0.45])
            thick = radius > 0.75
            start, side, angle, radius = start[thick], side[thick], angle[thick], radius[thick]
            length *= 0.8
        table = np.concatenate(radii).astype(np.float32)
        return cls(np.concatenate(points).astype(np.float32), table[:, 0], table[:, 1])

    def project(self, x: Array, y: Array, pixel: float, shape: tuple[int, int], origin: tuple[float, float]) -> Array:
        """Return the thickness in mm on a grid; see `splat` for the arguments. ``x`` and ``y`` move the points."""
        points = np.stack([x, y], axis=1)
        result = np.zeros(shape, np.float32)
        for low, high in zip((0.0, *_CALIBERS), (*_CALIBERS, np.inf), strict=True):
            chosen = (self.radii > low) & (self.radii <= high)
            radius = float(self.radii[chosen].mean())
            area = np.pi * self.radii[chosen] ** 2 * self.lengths[chosen]  # volume of a piece of vessel
            result += gaussian_filter(splat(points[chosen], area, pixel, shape, origin), 0.65 * radius / pixel)
        return result


def splat(points: Array, volumes: Array, pixel: float, shape: tuple[int, int], origin: tuple[float, float]) -> Array:
    """Distribute volumes bilinearly onto a grid.

    Args:
        points: (N, 2) x and y in mm.
        volumes: (N,) in mm³.
        pixel: mm between grid points.
        shape: rows and columns.
        origin: x and y of the first grid point in mm.

    Returns:
        Thickness in mm, (H, W); what falls outside is lost.
    """
    col, row = ((points - np.asarray(origin, np.float32)) / pixel).T
    left, top = np.floor(col).astype(np.intp), np.floor(row).astype(np.intp)
    right, down = col - left, row - top
    result = np.zeros(shape[0] * shape[1])
    for i, j, weight in (
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ):
        inside = (i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1])
        index = i[inside] * shape[1] + j[inside]
        result += np.bincount(index, (weight * volumes)[inside], minlength=result.size)
    return (result / pixel**2).reshape(shape).astype(np.float32)
