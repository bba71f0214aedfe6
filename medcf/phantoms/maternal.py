# SPDX-License-Identifier: Apache-2.0
"""What lies between the probe and the fetus: maternal layers, uterine wall and amniotic fluid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medcf.phantoms.shapes import Array, coverage
from medcf.phantoms.ultrasound import BeamGrid

__all__ = ["MaternalTissue"]


@dataclass(frozen=True)
class MaternalTissue:
    """The mother's tissue around one fetus.

    Args:
        layers: (64, 14) Gaussian field with standard deviation 1: along the depth and across the beams.
        slope: how much the layers bend toward the sides, in mm.
        fluid: mean width in mm of the amniotic fluid around the body, its swing in mm and the swing's phase in radians.
        scatter: mean amplitude of the tissue.
    """

    layers: Array
    slope: float
    fluid: tuple[float, float, float]
    scatter: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> MaternalTissue:
        """Draw the tissue: from little to much fluid, from dark to bright."""
        layers = ndimage.gaussian_filter(rng.standard_normal((64, 14)), (0.6, 1.0))
        layers /= layers.std()
        slope = rng.uniform(-12.0, 12.0)
        fluid = (rng.uniform(-4.0, 8.0), rng.uniform(4.0, 16.0), rng.uniform(0.0, 2 * np.pi))
        return cls(layers, slope, fluid, rng.uniform(0.018, 0.045))

    def texture(self, grid: BeamGrid) -> Array:
        """Return the layered texture on the beams, with a standard deviation of about 1."""
        depth = grid.depth[:, None] + self.slope * grid.angle[None, :] ** 2 * 6.0
        nodes = np.stack([depth / 2.4, np.broadcast_to(grid.angle[None, :] * 9.0 + 7.0, depth.shape)])
        return ndimage.map_coordinates(self.layers, nodes, order=1, mode="grid-wrap")

    def surround(self, grid: BeamGrid, body: Array, texture: Array, center: tuple[float, float]) -> tuple[Array, Array]:
        """Return scatter and interfaces outside a body: skin, amniotic fluid, uterine wall and maternal layers.

        Args:
            grid: the beams.
            body: signed distance in mm to the body's surface on them.
            texture: see `texture`.
            center: row and column in mm of the body's center.

        Returns:
            Amplitudes of diffuse scatter and of interfaces on the beams.
        """
        around = np.arctan2(grid.row - center[0], grid.col - center[1])
        base, swing, phase = self.fluid
        fluid = (
            base
            + swing * np.cos(around + phase)
            + 4.0 * np.cos(2 * around - phase)
            + 2.5 * np.sin(3 * around + 2 * phase)
        )
        fluid = np.minimum(fluid, 0.8 * grid.depth[:, None] - 9.0)
        broad = ndimage.map_coordinates(
            self.layers, np.stack([grid.row / 11.0 + 3.0, grid.col / 14.0]), order=1, mode="grid-wrap"
        )
        scatter = self.scatter * np.exp(0.75 * texture + 0.9 * broad)
        near = np.exp(-grid.depth[:, None] / 7.0)
        scatter = scatter * (1.0 + 0.8 * near)
        pocket = coverage(body - fluid, 2.0)
        scatter = scatter + (0.0009 - scatter) * pocket
        skin = coverage(np.abs(body - 1.3) - 1.3, 1.0)
        scatter = scatter + (0.035 - scatter) * skin
        wall = np.exp(-(((body - fluid) / 0.9) ** 2)) * coverage(3.0 - fluid, 2.0)
        specular = 0.05 * wall * np.clip(0.6 + 0.5 * broad, 0.0, 1.5)
        return scatter, specular + 0.13 * near * np.clip(texture, 0.0, 2.0) * (body > 3.0)
