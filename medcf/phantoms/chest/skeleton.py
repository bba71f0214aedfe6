# SPDX-License-Identifier: Apache-2.0
"""The bones of a chest, projected: thickness in mm of spine, ribs, clavicles, shoulder blades and upper arms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medcf.phantoms.chest.anatomy import Array, ChestShape, cage, coverage

__all__ = ["Skeleton"]

_RIBS = 14  # positions of ribs from above the first to below the tenth


@dataclass(frozen=True)
class Skeleton:
    """The parameters of one subject's bones; lengths in mm of an adult.

    Attributes:
        pitch: distance between ribs.
        drop: how far the front end of a rib is below its back end.
        jitter: displacement of every rib, (2, N), right and left.
        rib: half the width of the ribs.
        spine: half the width of the vertebrae.
        density: density of bone relative to the mean; children's is lower.
        clavicle: height of the clavicles' outer ends above the inner ones, right and left.
        growing: whether the ends of the bones are still cartilage.
    """

    pitch: float
    drop: float
    jitter: Array
    rib: float
    spine: float
    density: float
    clavicle: tuple[float, float]
    growing: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, *, child: bool) -> Skeleton:
        """Draw a subject: children's ribs are closer to horizontal and less dense."""
        return cls(
            pitch=float(rng.normal(25.5, 1.2)),
            drop=float(rng.normal(58.0 if child else 84.0, 8.0)),
            jitter=rng.normal(0.0, 1.1, (2, _RIBS)).astype(np.float32),
            rib=float(rng.normal(6.4, 0.5)),
            spine=float(rng.normal(18.5, 1.4)),
            density=float(rng.normal(0.8 if child else 1.0, 0.09)),
            clavicle=(float(rng.normal(18.0, 7.0)), float(rng.normal(18.0, 7.0))),
            growing=child,
        )

    def project(self, shape: ChestShape, x: Array, y: Array, pixel: float) -> Array:
        """Return the thickness of bone, (H, W), in mm of an adult."""
        bone = self._ribs(shape, x, y, pixel) + self._spine(shape, x, y)
        return (self.density * (bone + self._girdle(shape, x, y, pixel))).astype(np.float32)

    def _ribs(self, shape: ChestShape, x: Array, y: Array, pixel: float) -> Array:
        """Ribs are tilted rings: x = C sin(a), y = back + drop (1 - cos a) / 2, from the spine (0) to the front."""
        reach = cage(shape, y + 0.5 * self.drop) + 5.0
        share = np.minimum(np.abs(x) / reach, 1.0)
        lateral = np.sqrt(1.0 - share * share)
        tangent = np.minimum(1.0 / np.sqrt(1.0 - 0.97 * share * share), 2.6)  # the beam along the rib at the side
        side = (x > 0).astype(np.intp)
        hump = 9.0 * np.sin(np.pi * np.minimum(share * 1.6, 1.0))
        bone = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
        for sign, weight in ((-1.0, 1.0), (1.0, 0.72)):
            start = y + 128.0 - 0.5 * self.drop * (1.0 + sign * lateral) + (hump if sign < 0 else 0.0)
            number = np.clip(np.rint(start / self.pitch), 0, _RIBS - 1)
            offset = start - number * self.pitch - self.jitter[side, number.astype(np.intp)]
            half = self.rib * (1.0 if sign < 0 else 1.15)
            # the shell of the bone is densest where the beam is tangential to it: at its upper and lower border
            across = np.minimum(np.abs(offset) / half, 1.0)
            shell = np.sqrt(1.0 - across * across) - 0.74 * np.sqrt(np.maximum(1.0 - (across / 0.8) ** 2, 0.0))
            body = 11.0 * shell + 4.5 * np.sqrt(1.0 - across * across)
            ends = np.clip((share - (0.0 if sign < 0 else 0.42)) / 0.06, 0.0, 1.0)
            number_ok = (number >= 1) & (number <= (10 if sign < 0 else 8))
            bone += weight * tangent * body * ends * number_ok
        return bone * coverage(np.abs(x) - reach, 2.0 * pixel)

    def _spine(self, shape: ChestShape, x: Array, y: Array) -> Array:
        """Vertebral bodies with discs between them, and the pedicles."""
        middle = shape.bend * np.cos(y / 95.0)
        half = self.spine * (0.8 + 0.2 * np.clip((y + 150.0) / 250.0, 0.0, 1.0))
        phase = (y - 7.0) / self.pitch
        within = np.abs(phase - np.rint(phase)) * 2.0  # 0 at the center of a vertebra, 1 in the disc
        disc = np.clip((within - 0.72) / 0.2, 0.0, 1.0)
        waisted = half * (1.0 - 0.12 * (1.0 - within))
        across = np.abs(x - middle)
        body = np.clip((waisted - across) / 4.0, 0.0, 1.0)
        rim = np.exp(-(((across - waisted + 2.5) / 2.5) ** 2))
        bone = (13.0 + 6.0 * rim) * body * (1.0 - (0.8 if self.growing else 0.65) * disc)
        pedicle = np.exp(-(((across - 0.6 * half) / 3.4) ** 2) - ((within - 0.25) / 0.3) ** 2)
        process = np.exp(-((across / 3.0) ** 2) - ((within - 0.75) / 0.35) ** 2)
        return bone + 6.0 * pedicle + 7.0 * process

    def _girdle(self, shape: ChestShape, x: Array, y: Array, pixel: float) -> Array:
        """Clavicles, shoulder blades and upper arms."""
        outward = np.abs(x)
        rise = np.where(x < 0, np.float32(self.clavicle[0]), np.float32(self.clavicle[1]))
        along = np.clip((outward - 16.0) / (112.0 * shape.width), 0.0, 1.15)
        line = -96.0 - shape.shoulders * 0.3 - rise * along + 6.0 * np.sin(2 * np.pi * along)
        half = 5.2 + 3.2 * (2.0 * np.minimum(along, 1.0) - 1.0) ** 2
        across = np.minimum(np.abs(y - line) / half, 1.0)
        shaft = 21.0 * np.sqrt(1.0 - across**2) - 9.0 * np.sqrt(np.maximum(1.0 - (across / 0.7) ** 2, 0.0))
        bone = shaft * np.clip((outward - 16.0) / 3.0, 0.0, 1.0) * np.clip((1.1 - along) / 0.05, 0.0, 1.0)

        edge = 84.0 * shape.width + 0.42 * (y + 70.0) * (y < 20) - outward  # the medial border of the blade
        inside = np.minimum(np.minimum(-edge, 150.0 * shape.width - outward), np.minimum(y + 112.0, 24.0 - y))
        blade = np.clip(inside / 6.0, 0.0, 1.0)
        bone = bone + 2.4 * blade + 3.0 * np.exp(-(((inside - 2.0) / 3.0) ** 2)) * (inside > 0)

        cos, sin = float(np.cos(shape.arms)), float(np.sin(shape.arms))
        dx, dy = outward - 146.0 * shape.width, y + 100.0 - shape.shoulders
        down, across = dx * sin + dy * cos, np.abs(dx * cos - dy * sin)
        width = 9.5 + 11.0 * np.exp(-((np.maximum(down - 4.0, 0.0) / 24.0) ** 2))
        gap = np.exp(-(((down - 20.0) / 2.5) ** 2)) if self.growing else np.zeros((), np.float32)
        inside = np.minimum(width - across, down + 18.0)
        shaft = 9.0 * np.clip(inside / 4.0, 0.0, 1.0) + 9.0 * np.exp(-(((inside - 2.5) / 2.5) ** 2)) * (inside > 0)
        return bone + shaft * (1.0 - 0.8 * gap)
