# SPDX-License-Identifier: Apache-2.0
"""The fetal head as analytic functions of position: outline, brain structures and their echoes.

Head coordinates are millimeters from the center of the head: ``x`` lateral, ``y`` anterior, ``z`` toward the vertex.
The plane ``z = 0`` is the transthalamic plane, where the head circumference is measured (ISUOG practice guidelines,
2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medcf.phantoms.shapes import Array, coverage, ellipsoid, mix

__all__ = ["HeadAnatomy", "Structures"]

_REFERENCE_BPD = 90.0  # mm; the brain structures below are sized for a head of this width
_LATTICE = 24  # nodes of the periodic texture volume along each axis
_LATTICE_SPACING = 3.2  # mm between nodes


@dataclass(frozen=True)
class Structures:
    """Signed distances in mm (negative inside) from a set of points to the structures of the head.

    All fields have the shape of the points. ``head`` is the outer surface of the skull, ``brain`` its inner surface.
    """

    head: Array
    brain: Array
    thalami: Array
    cavum: Array
    cerebellum: Array
    cisterna: Array

    @property
    def fossa(self) -> Array:
        """Distance to the contents of the posterior fossa (cerebellum and cisterna magna)."""
        return np.minimum(self.cerebellum, self.cisterna)

    def labels(self) -> NDArray[np.uint8]:
        """Return what the points are: 0 none of these, 1 skull, 2 thalami, 3 cavum, 4 posterior fossa."""
        labels = np.zeros(self.head.shape, np.uint8)
        labels[self.head < 0] = 1
        labels[self.brain < 0] = 0
        labels[self.fossa < 0] = 4
        labels[self.thalami < 0] = 2
        labels[self.cavum < 0] = 3
        return labels


@dataclass(frozen=True)
class HeadAnatomy:
    """Size, shape and texture of one head: everything that stays the same in all planes.

    Args:
        bpd: outer biparietal diameter in mm before the shape is perturbed.
        ofd: outer occipitofrontal diameter in mm.
        height: outer diameter from base to vertex in mm.
        skull: thickness of the skull in mm.
        harmonics: eight coefficients of the outline's low-order perturbation (fractions of the radius).
        variation: ten factors near 1 that vary the sizes and positions of the brain structures.
        texture: (2, 24, 24, 24) periodic Gaussian fields, fine and coarse, with standard deviation 1.
    """

    bpd: float
    ofd: float
    height: float
    skull: float
    harmonics: Array
    variation: Array
    texture: Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> HeadAnatomy:
        """Draw a head: BPD 62 to 90 mm, cephalic index 0.72 to 0.86."""
        bpd = rng.uniform(62.0, 90.0)
        ofd = min(bpd / rng.uniform(0.72, 0.86), 116.0)
        height = bpd * rng.uniform(0.98, 1.12)
        skull = rng.uniform(2.4, 3.4) * (bpd / _REFERENCE_BPD) ** 0.5
        harmonics = rng.normal(0.0, 0.011, 8)
        harmonics[0] += rng.uniform(0.02, 0.07)  # the occiput is broader than the forehead
        variation = 1.0 + rng.uniform(-0.12, 0.12, 10)
        noise = rng.standard_normal((2, _LATTICE, _LATTICE, _LATTICE))
        fields = [
            ndimage.gaussian_filter(noise[0], 0.7, mode="wrap"),
            ndimage.gaussian_filter(noise[1], 1.5, mode="wrap"),
        ]
        texture = np.stack([field / field.std() for field in fields])
        return cls(bpd, ofd, height, skull, harmonics, variation, texture)

    @property
    def scale(self) -> float:
        """The size of this head relative to one with a BPD of 90 mm."""
        return self.bpd / _REFERENCE_BPD

    def outline(self, x: Array, y: Array, z: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        """Return the distance to the skull's outer surface, to first order, and the surface's normal.

        Args:
            x: lateral position in mm.
            y: anterior position in mm.
            z: cranial position in mm.

        Returns:
            Signed distance in mm (negative inside) and the three components of the unit normal of the ellipsoid.
        """
        b, a, c = self.bpd / 2, self.ofd / 2, self.height / 2
        u, v, w = x / b, y / a, z / c
        r = np.sqrt(u * u + v * v + w * w) + 1e-9
        nx, ny, nz = u / r, v / r, w / r
        h = self.harmonics
        xx, yy = nx * nx, ny * ny
        bump = -h[0] * ny * xx + h[1] * (xx - yy) * xx + h[2] * nx * ny + h[3] * ny * (3 - 5 * yy) / 2
        bump += h[4] * nx * (3 - 5 * xx) / 2 + h[5] * ny * nz + h[6] * (8 * yy * yy - 8 * yy + 1) + h[7] * nz * xx
        gx, gy, gz = u / b, v / a, w / c
        slope = np.sqrt(gx * gx + gy * gy + gz * gz) + 1e-12
        return (r - 1 - bump) * r / slope, (gx / slope, gy / slope, gz / slope)

    def structures(self, x: Array, y: Array, z: Array, head: Array | None = None) -> Structures:
        """Return the signed distances of points to every labeled structure.

        Args:
            x: lateral position in mm.
            y: anterior position in mm.
            z: cranial position in mm.
            head: distance to the outer surface, if already known.

        Returns:
            The distances in mm.
        """
        if head is None:
            head, _ = self.outline(x, y, z)
        x, y, z = self.warp(x, y, z)
        k, q = self.scale, self.variation
        a = self.ofd / 2
        side = np.abs(x)
        forward = y + 0.06 * a
        # The thalami converge toward the front, so the pair looks like a diamond.
        tx, ty = side - 10.0 * k * q[0] + 0.28 * forward, forward
        thalami = ellipsoid(tx, ty, z + 1.0 * k, 8.8 * k * q[0], 12.5 * k * q[1], 9.0 * k)
        cx, cy, cz = side - 3.6 * k * q[2], np.abs(y - 0.47 * a) - 8.0 * k * q[3], np.abs(z - 1.5 * k) - 5.5 * k
        cavum = np.maximum(np.maximum(cx, cy), cz)
        lobe = ellipsoid(side - 12.0 * k * q[4], y + 0.53 * a, z + 21.5 * k, 13.5 * k * q[4], 9.5 * k * q[5], 12.5 * k)
        vermis = ellipsoid(x, y + 0.53 * a, z + 21.5 * k, 5.0 * k, 8.5 * k * q[5], 12.0 * k)
        cerebellum = np.minimum(lobe, vermis)
        brain = head + self.skull
        cistern = ellipsoid(x, y + 0.76 * a, z + 23.0 * k, 19.0 * k, 10.0 * k, 12.5 * k)
        cisterna = np.maximum(np.maximum(cistern, brain), -cerebellum)
        return Structures(head, brain, np.maximum(thalami, brain), cavum, np.maximum(cerebellum, brain), cisterna)

    def noise(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Return fine and coarse texture at points; fixed to the head, standard deviation about 1."""
        nodes = np.stack([x, y, z]) / _LATTICE_SPACING
        fine, coarse = (ndimage.map_coordinates(field, nodes, order=1, mode="grid-wrap") for field in self.texture)
        return fine, coarse

    def warp(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Bend positions smoothly by up to about 3 mm, so that no brain structure is a perfect ellipsoid.

        Args:
            x: lateral position in mm.
            y: anterior position in mm.
            z: cranial position in mm.

        Returns:
            The bent positions in mm.
        """
        k, q = self.scale, self.variation
        p, r = 40.0 * q[8], 40.0 * q[9]
        bent_x = x + k * (0.9 * np.sin((y + p) / (9.0 * k)) + 0.5 * np.sin((y * 0.7 + x + 1.7 * r) / (4.3 * k)))
        bent_y = y + k * (1.1 * np.sin((x + r) / (7.5 * k)) + 0.6 * np.sin((x * 0.8 - y + 2.3 * p) / (3.9 * k)))
        return bent_x, bent_y, z

    def echoes(self, x: Array, y: Array, z: Array, parts: Structures) -> tuple[Array, Array]:
        """Return backscatter and specular amplitude of the brain (excluding the skull and everything outside it).

        Args:
            x: lateral position in mm.
            y: anterior position in mm.
            z: cranial position in mm.
            parts: the distances of the same points.

        Returns:
            Amplitudes of diffuse scatter and of bright interfaces, both relative to a skull at normal incidence (1).
        """
        k, q = self.scale, self.variation
        a, b = self.ofd / 2, self.bpd / 2
        fine, coarse = self.noise(x, y, z)
        _, ridge = self.noise(1.25 * x + 31.0, 0.62 * y, 1.1 * z)
        x, y, z = self.warp(x, y, z)
        side = np.abs(x)
        patch = np.clip(0.75 + 0.55 * fine + 0.25 * coarse, 0.08, 1.8)  # interfaces are visible in pieces
        scatter = 0.0085 * np.exp(0.45 * fine + 0.45 * coarse)
        # Sulci and pia: level sets of the coarse field, mostly near the surface of the brain.
        rim = np.clip(1.0 + parts.brain / (26.0 * k), 0.0, 1.0)
        scatter += 0.075 * (0.25 + rim) * np.exp(-((ridge / 0.14) ** 2)) * np.clip(0.35 + 0.8 * fine, 0.0, 2.0)
        lines = np.zeros_like(x)

        # Lateral ventricles with choroid plexus: above the standard plane.
        ventricle = ellipsoid(
            side - 13.0 * k * q[6] - 0.18 * np.abs(y), y + 0.10 * a, z - 19.0 * k, 6.2 * k, 27.0 * k * q[7], 11.0 * k
        )
        plexus = ellipsoid(
            side - 13.5 * k * q[6] - 0.18 * np.abs(y), y + 0.22 * a, z - 18.5 * k, 5.0 * k, 15.0 * k * q[7], 9.5 * k
        )
        scatter = mix(scatter, 0.0025, coverage(ventricle, 1.2))
        lines += 0.13 * patch * np.exp(-((ventricle / 0.8) ** 2))
        scatter = mix(scatter, 0.085 * np.exp(0.3 * fine), coverage(plexus, 1.5))

        # Thalami: hypoechoic, with an echogenic border, and the third ventricle between them.
        scatter = scatter + 0.022 * np.exp(0.5 * fine - ((parts.thalami - 2.2 * k) / (2.6 * k)) ** 2)
        scatter = mix(scatter, 0.0030 * np.exp(0.25 * fine), coverage(parts.thalami, 1.8))
        lines += 0.030 * patch * np.exp(-((parts.thalami / 1.0) ** 2))
        between = np.clip(1.2 - np.abs(y + 0.06 * a) / (10.0 * k), 0.0, 1.0) * np.clip(
            1.4 - np.abs(z) / (9 * k), 0.0, 1.0
        )
        lines += 0.12 * patch * between * np.exp(-(((side - 1.1 * k) / 0.7) ** 2))

        # Insula and Sylvian fissure: a curve along the temporal lobe, and the operculum outside it.
        fold = side - b * (0.60 + 0.04 * q[8]) + 0.010 / k * (y - 0.12 * a) ** 2
        reach = np.clip(1.5 - np.abs(y - 0.12 * a) / (0.26 * a), 0.0, 1.0) * np.clip(
            1.6 - np.abs(z) / (15 * k), 0.0, 1.0
        )
        lines += 0.14 * reach * patch * np.exp(-((fold / 0.9) ** 2))

        # Cavum: fluid between two parallel walls, closed by thinner ends.
        scatter = mix(scatter, 0.0007, coverage(parts.cavum, 1.0))
        wall = np.abs(side - 3.6 * k * q[2])
        ends = coverage(np.abs(y - 0.47 * a) - 8.5 * k * q[3], 2.0) * coverage(np.abs(z - 1.5 * k) - 6.0 * k, 2.0)
        lines += 0.42 * ends * np.clip(patch, 0.5, 1.2) * np.exp(-((wall / 0.8) ** 2))

        # Falx: interrupted by cavum and thalami in the standard plane, complete above them, absent in the posterior
        # fossa.
        gap = coverage(np.abs(y - 0.17 * a) - 0.47 * a, 0.08 * a) * coverage(z - 8.0 * k, 6.0 * k)
        below = coverage(z + 14.0 * k, 8.0 * k) * coverage(y + 0.25 * a, 0.1 * a)
        base = coverage(z + 26.0 * k, 8.0 * k)
        bend = x - 0.9 * np.sin(y * (3.0 / a) + 6.0 * q[9]) * k
        fissure = (1.0 - gap) * coverage(-parts.fossa, 2.0) * (1.0 - below) * (1.0 - base) * np.clip(patch, 0.12, 1.3)
        lines += 0.36 * fissure * np.exp(-((bend / 0.75) ** 2))

        # Posterior fossa: butterfly of the cerebellum with folia, bright vermis, black cistern.
        folia = 0.5 + 0.5 * np.sin((side * 0.35 + (y + 0.53 * a)) * (2.1 / k))
        scatter = mix(scatter, 0.016 + 0.038 * folia * patch, coverage(parts.cerebellum, 1.2))
        vermis = ellipsoid(x, y + 0.53 * a, z + 21.5 * k, 4.0 * k, 8.0 * k, 11.0 * k)
        scatter = mix(scatter, 0.13 * np.exp(0.3 * fine), coverage(vermis, 1.5))
        scatter = mix(scatter, 0.0008, coverage(parts.cisterna, 1.2))
        lines += 0.10 * np.clip(patch, 0.2, 1.4) * np.exp(-((parts.cerebellum / 0.9) ** 2))

        # Skull base: orbits in front, petrous ridges at the sides, only in planes that are much too low.
        orbit = ellipsoid(side - 0.40 * b, y - 0.60 * a, z + 31.0 * k, 10.0 * k, 10.0 * k, 9.0 * k)
        scatter = mix(scatter, 0.0012, coverage(orbit, 1.2))
        lines += 0.20 * patch * np.exp(-((orbit / 1.1) ** 2))
        low = coverage(z + 21.0 * k, 6.0 * k)
        ridge = y + 0.10 * a + 0.42 * side
        wing = y - 0.36 * a + 0.10 * side
        lines += 0.24 * patch * low * np.exp(-((ridge / 1.5) ** 2)) * coverage(5.0 * k - side, 4.0)
        lines += 0.18 * patch * low * np.exp(-((wing / 1.2) ** 2)) * coverage(7.0 * k - side, 4.0)
        return scatter, lines
