# SPDX-License-Identifier: Apache-2.0
"""A plane's content, painted part by part: once as echoes on beams, once as labels on pixels."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medcf.phantoms.head.poses import Plane
from medcf.phantoms.maternal import MaternalTissue
from medcf.phantoms.planes.fetus import Fetus
from medcf.phantoms.shapes import Array, coverage, mix
from medcf.phantoms.ultrasound import BeamGrid

__all__ = ["STRUCTURES", "Scene"]

#: Names of the segmentation labels, starting from 1. The first four are the head phantom's.
STRUCTURES = (
    *("skull", "thalami", "cavum", "posterior_fossa"),
    *("abdomen", "stomach", "umbilical_vein", "vessels", "spine", "ribs", "kidneys"),
    *("thorax", "heart", "chambers"),
    *("thigh", "femur", "limb", "bone", "face"),
    *("cervix", "canal", "bladder", "fetal_head", "placenta", "cord", "fluid"),
)

FLUID = 0.0008  # amplitude of diffuse scatter, relative to a skull at normal incidence
BONE = 0.012
_ENHANCEMENT = -0.13  # dB per mm: fluid attenuates less than the time-gain compensation expects


class Scene:
    """Points of one plane and what is painted there.

    A part is given by its signed distance in mm at the points, negative inside; later parts cover earlier ones.

    Args:
        fetus: gives the texture.
        plane: position of the anatomy in the image.
        row: vertical positions in mm; None takes those of the beams.
        col: horizontal positions in mm; None takes those of the beams.
        grid: the beams on which to paint echoes; None paints labels only.
        mother: tissue around the fetus, for echoes.
    """

    def __init__(
        self,
        fetus: Fetus,
        plane: Plane,
        row: Array | None = None,
        col: Array | None = None,
        *,
        grid: BeamGrid | None = None,
        mother: MaternalTissue | None = None,
    ) -> None:
        self.fetus, self.plane, self.grid, self.mother = fetus, plane, grid, mother
        if grid is not None:
            row, col = grid.row, grid.col
        if row is None or col is None:
            raise ValueError("row and col are missing: a scene of labels needs positions.")
        self.row, self.col = row, col
        self.x, self.y, self.z = plane.points(row, col)
        if plane.forward == (1.0, 0.0, 0.0):  # two-dimensional anatomy; a head bends by itself
            self.x, self.y = fetus.warp(self.x, self.y)
        self.labels: NDArray[np.uint8] = np.zeros(row.shape, np.uint8)
        self.scatter: Array = np.full(row.shape, 0.03)
        self.specular: Array = np.zeros(row.shape)
        self.bone_share: Array = np.zeros(row.shape)
        self.loss: Array = np.zeros(row.shape)  # dB per mm, beside that of bone

    @cached_property
    def texture(self) -> tuple[Array, Array]:
        """Fine and coarse texture, fixed to the anatomy."""
        return self.fetus.noise(self.x, self.y)

    @cached_property
    def layers(self) -> Array:
        """Layered texture of the mother's tissue."""
        if self.grid is None or self.mother is None:
            raise ValueError("the mother's tissue is only painted on beams.")
        return self.mother.texture(self.grid)

    def surround(self, body: Array | None = None) -> None:
        """Start with the mother's tissue and the amniotic fluid around a body; without one, tissue alone."""
        if self.grid is None or self.mother is None:
            return
        distance = np.full(self.row.shape, 1e3) if body is None else body
        self.scatter, self.specular = self.mother.surround(self.grid, distance, self.layers, self.plane.center)
        self.loss = np.where((self.scatter < 0.002) & (distance > 0), _ENHANCEMENT, 0.0)

    def fill(
        self,
        name: str | None,
        distance: Array,
        level: float | Array,
        *,
        grain: float = 0.3,
        edge: float = 1.0,
        loss: float = 0.0,
    ) -> None:
        """Fill a part with tissue.

        Args:
            name: label of the part, one of ``STRUCTURES``; None leaves the labels.
            distance: signed distance in mm.
            level: amplitude of its diffuse scatter.
            grain: unevenness of the amplitude (standard deviation of its logarithm).
            edge: mm over which its border is blurred.
            loss: attenuation in dB per mm beside the compensated one.
        """
        if name is not None:
            self.labels[distance < 0] = STRUCTURES.index(name) + 1
        if self.grid is None:
            return
        share = coverage(distance, edge)
        if grain:
            fine, coarse = self.texture
            level = level * np.exp(grain * (0.75 * fine + 0.65 * coarse))
        self.scatter = mix(self.scatter, level, share)
        self.specular = self.specular * (1.0 - share)
        if loss:
            self.loss = mix(self.loss, loss, share)

    def fluid(self, name: str | None, distance: Array, wall: float = 0.05) -> None:
        """Fill a part with fluid, which is black and brightens what lies behind it, inside a thin wall."""
        self.fill(name, distance, FLUID, grain=0.0, edge=0.8, loss=_ENHANCEMENT)
        if wall:
            self.line(distance, wall, width=0.6)

    def line(
        self,
        distance: Array,
        level: float,
        *,
        width: float = 0.7,
        facing: float = 2.0,
        breaks: float = 0.45,
        near_only: bool = False,
    ) -> None:
        """Add a smooth interface where a distance is zero.

        Args:
            distance: signed distance in mm.
            level: amplitude where the beam meets it at a right angle.
            width: half its thickness in mm.
            facing: exponent of the cosine between the beam and the interface's normal.
            breaks: how unevenly it is seen.
            near_only: whether only what faces the probe is seen.
        """
        if self.grid is None:
            return
        near = np.abs(distance) < 2.5 * width
        if not near.any():
            return
        fine, coarse = self.texture
        seen = np.clip(0.85 + breaks * (0.8 * fine[near] + 0.5 * coarse[near]), 0.15, 1.6)
        slope = np.gradient(distance, axis=0)[near] * (self.grid.shape[0] / self.grid.scanner.depth)
        cosine = 0.05 + 0.95 * np.clip(-slope if near_only else np.abs(slope), 0.0, 1.0) ** facing
        self.specular[near] += level * np.exp(-((distance[near] / width) ** 2)) * seen * cosine

    def bone(
        self,
        name: str | None,
        distance: Array,
        level: float = 0.8,
        *,
        facing: float = 2.0,
        shadow: float = 1.0,
        breaks: float = 0.45,
    ) -> None:
        """Add a bone: a bright surface, and a shadow behind it.

        Args:
            name: label of the part, one of ``STRUCTURES``; None leaves the labels.
            distance: signed distance in mm.
            level: amplitude of its surface, see `line`.
            facing: see `line`.
            shadow: attenuation, relative to the scanner's for dense bone.
            breaks: see `line`.
        """
        if name is not None:
            self.labels[distance < 0] = STRUCTURES.index(name) + 1
        if self.grid is None:
            return
        share = coverage(distance, 0.9)
        self.scatter = mix(self.scatter, BONE, share)
        self.bone_share = np.maximum(self.bone_share, share * shadow)
        self.line(distance + 0.5, level, width=0.9, facing=facing, breaks=breaks, near_only=True)
