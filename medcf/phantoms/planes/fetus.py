# SPDX-License-Identifier: Apache-2.0
"""One fetus: its age, the sizes that follow from it, its shape and its texture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from medcf.phantoms.head.anatomy import HeadAnatomy
from medcf.phantoms.shapes import Array

__all__ = ["Fetus", "median_sizes"]

_LATTICE = 64  # nodes of the periodic texture along each axis


def median_sizes(weeks: float) -> dict[str, float]:
    """Return the median sizes in mm at a gestational age, as the INTERGROWTH-21st equations give them.

    Args:
        weeks: gestational age in weeks, 14 to 40.

    Returns:
        ``bpd`` and ``ofd`` (biparietal and occipitofrontal diameter), ``ac`` (abdominal circumference), ``fl`` (length
        of the femur's shaft), Papageorghiou et al., Lancet 384:869 (2014).
    """
    square, cube = weeks**2, weeks**3
    return {
        "bpd": 5.60878 + 0.158369 * square - 0.00256379 * cube,
        "ofd": -12.4097 + 0.626342 * square - 0.148075 * square * np.log(weeks),
        "ac": -81.3243 + 11.6772 * weeks - 0.000561865 * cube,
        "fl": -39.9616 + 4.32298 * weeks - 0.0380156 * square,
    }


@dataclass(frozen=True)
class Fetus:
    """A fetus and its mother's cervix: everything that stays the same in all planes of one examination.

    Args:
        weeks: gestational age in weeks.
        factors: sizes relative to the median of the age: head's width, head's length, trunk, long bones.
        variation: sixteen factors near 1 that vary the sizes and positions of organs.
        harmonics: eight coefficients of outlines' low-order perturbation (fractions of the radius).
        texture: (2, 64, 64) periodic Gaussian fields, fine and coarse, with standard deviation 1.
        seed: of the head's own shape and texture.
    """

    weeks: float
    factors: tuple[float, float, float, float]
    variation: Array
    harmonics: Array
    texture: Array
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Fetus:
        """Draw a fetus of 18 to 36 weeks; most are examined from 19 to 23 weeks or from 30 to 34."""
        weeks = rng.normal(*((21.0, 1.5) if rng.random() < 0.55 else (31.5, 2.2)))
        factors = tuple(float(factor) for factor in np.exp(rng.normal(0.0, 0.04, 4)))
        variation = 1.0 + rng.uniform(-0.15, 0.15, 16)
        harmonics = rng.normal(0.0, 0.014, 8)
        noise = rng.standard_normal((2, _LATTICE, _LATTICE))
        fields = [ndimage.gaussian_filter(field, s, mode="wrap") for field, s in zip(noise, (0.7, 1.8), strict=True)]
        texture = np.stack([field / field.std() for field in fields])
        return cls(
            float(np.clip(weeks, 18.0, 36.0)),
            factors,  # type: ignore[arg-type]  # four of them
            variation,
            harmonics,
            texture,
            int(rng.integers(2**31)),
        )

    @cached_property
    def sizes(self) -> dict[str, float]:
        """Its sizes in mm, see `median_sizes`."""
        width, length, trunk, limbs = self.factors
        found = median_sizes(self.weeks)
        scale = {"bpd": width, "ofd": length, "ac": trunk, "fl": limbs}
        return {name: float(value * scale[name]) for name, value in found.items()}

    @property
    def trunk(self) -> float:
        """Mean radius of the abdomen in mm."""
        return self.sizes["ac"] / (2 * np.pi)

    @cached_property
    def head(self) -> HeadAnatomy:
        """The head, with the shape that the head phantom draws and the size of this age."""
        drawn = HeadAnatomy.draw(np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x8EAD, self.seed]))))
        bpd = self.sizes["bpd"]
        return replace(
            drawn,
            bpd=bpd,
            ofd=self.sizes["ofd"],
            height=drawn.height / drawn.bpd * bpd,
            skull=drawn.skull * (bpd / drawn.bpd) ** 0.5,
        )

    def warp(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Bend positions in mm smoothly, by a few percent of the trunk's radius, so that no organ is an ellipse."""
        r, h = self.trunk, 300.0 * self.harmonics
        bent_x = x + 0.030 * r * np.sin(y * (2.1 / r) + h[4]) + 0.016 * r * np.sin((y + 0.6 * x) * (4.3 / r) + h[5])
        bent_y = y + 0.030 * r * np.sin(x * (1.9 / r) + h[6]) + 0.016 * r * np.sin((x - 0.5 * y) * (3.9 / r) + h[7])
        return bent_x, bent_y

    def noise(self, x: Array, y: Array, spacing: float = 1.6) -> tuple[Array, Array]:
        """Return fine and coarse texture at positions in mm; standard deviation about 1."""
        nodes = np.stack([x, y]) / spacing
        fine, coarse = (ndimage.map_coordinates(field, nodes, order=1, mode="grid-wrap") for field in self.texture)
        return fine, coarse
