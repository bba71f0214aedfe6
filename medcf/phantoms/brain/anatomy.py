# SPDX-License-Identifier: Apache-2.0
"""The shapes of a parametric brain: signed distances in mm of lobes, sulci, ventricles, hippocampi and nuclei.

Points are RAS+ mm (x right, y anterior, z superior) relative to the center of the brain. Sizes follow adult anatomy:
about 1.3 l of brain, a cortex of 3 mm, 15 to 60 ml of ventricles and 3 ml per hippocampus.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Brain", "BrainShape", "coverage"]

Array = NDArray[np.float32]

_SULCI = 30  # plane waves in the folding pattern
_FOLD = 27.0  # mm, their wavelength: there are two sulci per wavelength
_SHELL = 66.0  # mm, radius at which the folding pattern is evaluated

# Center lines of one side's lateral ventricle (x outward) and the radii along them, in mm at a growth of 1.
_FRONTAL = ((4.5, 30, 10), (5.5, 18, 17), (6.5, 2, 22), (9.0, -16, 23), (16, -30, 17), (22, -38, 8))
_FRONTAL_RADII = (3.0, 4.6, 4.4, 4.4, 5.6, 5.6)
_OCCIPITAL = ((22, -38, 8), (22, -52, 6), (19, -63, 5))
_OCCIPITAL_RADII = (5.6, 3.4, 1.2)
_TEMPORAL = ((22, -38, 8), (31, -33, -4), (34, -20, -12), (31, -8, -17))
_TEMPORAL_RADII = (5.0, 2.5, 1.9, 1.4)
_HIPPOCAMPUS = ((22, -6, -20), (26, -16, -18), (27, -27, -11), (22, -36, -2))
_HIPPOCAMPUS_RADII = (5.2, 5.4, 4.4, 2.8)


def coverage(distance: Array, width: float) -> Array:
    """Return the fraction of a voxel (its width is in mm) inside a surface: 1 well inside, 0 well outside."""
    return np.clip(0.5 - distance / width, 0.0, 1.0)


@dataclass(frozen=True)
class BrainShape:
    """The parameters of one subject's anatomy; lengths in mm, angles in radians.

    Attributes:
        scale: size along x, y and z relative to the mean brain.
        waves, phases: folding pattern, (N, 3) per mm and (N,).
        bend, bend_phases, bend_amplitudes: a smooth deformation of space, waves as above.
        sulcus_depth: depth of the sulci.
        cortex: thickness of the cortex.
        ventricle: radius of the ventricles relative to the mean, left and right.
        hippocampus: radius of the hippocampi relative to the mean, left and right.
        nuclei: size of the deep nuclei relative to the mean.
    """

    scale: tuple[float, float, float]
    waves: Array
    phases: Array
    bend: Array
    bend_phases: Array
    bend_amplitudes: Array
    sulcus_depth: float
    cortex: float
    ventricle: tuple[float, float]
    hippocampus: tuple[float, float]
    nuclei: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, age: float, male: bool) -> BrainShape:
        """Draw a subject; ventricles grow and cortex thins with age, men's brains are larger."""
        size = (1.03 if male else 0.965) * rng.normal(1.0, 0.018)
        ventricle = np.exp(rng.normal(0.0, 0.13)) * (1.0 + 0.007 * (age - 70.0))
        return cls(
            scale=tuple(float(size * rng.normal(1.0, 0.02)) for _ in range(3)),  # type: ignore[arg-type]
            waves=_waves(rng, _SULCI, _FOLD),
            phases=rng.uniform(0, 2 * np.pi, _SULCI).astype(np.float32),
            bend=_waves(rng, 6, 120.0),
            bend_phases=rng.uniform(0, 2 * np.pi, 6).astype(np.float32),
            bend_amplitudes=rng.normal(0.0, 1.1, (6, 3)).astype(np.float32),
            sulcus_depth=float(rng.uniform(14.0, 19.0)),
            cortex=float(rng.normal(3.3, 0.15) * (1.0 - 0.002 * (age - 70.0))),
            ventricle=(float(ventricle * rng.normal(1, 0.05)), float(ventricle * rng.normal(1, 0.05))),
            hippocampus=(float(rng.normal(1.0, 0.05)), float(rng.normal(1.0, 0.05))),
            nuclei=float(rng.normal(1.0, 0.04)),
        )


@dataclass(frozen=True)
class Brain:
    """Signed distances (N,) in mm at given points, negative inside.

    Attributes:
        envelope: the whole brain including the fluid in its sulci.
        pial: depth below the pial surface of cerebrum, cerebellum and stem, POSITIVE inside the tissue.
        ventricles: lateral, third and fourth ventricles.
        hippocampi: both hippocampi.
        nuclei: thalami, caudate nuclei and putamina.
    """

    envelope: Array
    pial: Array
    ventricles: Array
    hippocampi: Array
    nuclei: Array

    @classmethod
    def at(cls, points: Array, shape: BrainShape, *, severity: float) -> Brain:
        """Measure a subject at a disease severity in [0, 1].

        Args:
            points: (3, N) RAS+ mm.
            shape: the subject.
            severity: 0 is healthy; at 1 the ventricles' radii have grown by 45 %, the hippocampi's have shrunk by 19 %,
                and the sulci are 0.7 mm wider on each side.

        Returns:
            The distances.
        """
        points = _bend(points, shape) / np.asarray(shape.scale, np.float32)[:, None]
        x, y, z = points
        side = np.abs(x)
        lobes = _cerebrum(side, y, z)
        gap = 0.5 + 0.7 * severity
        cerebrum = np.minimum(-lobes, _folds(points, -lobes, shape, gap))
        cerebrum = np.minimum(cerebrum, _fissure(side, y, z) - gap)
        lower, folia = _cerebellum(side, y, z)
        stem = _ellipsoid(x, y, z, (0, -20, -38), (12, 13, 33))
        stem = np.minimum(stem, _ellipsoid(x, y, z, (0, -14, -32), (16, 14, 13)))
        envelope = np.minimum(np.minimum(lobes, lower), stem)
        pial = np.maximum(np.maximum(cerebrum, folia), np.where(stem < 0, 12.0, -stem))
        growth = 1.0 + 0.45 * severity
        left, right = (growth * value for value in shape.ventricle)
        size = np.where(x < 0, np.float32(left), np.float32(right))
        third = _ellipsoid(x, y, z, (0, -8, 4), (2.2 * left, 13.0, 9.0))
        fourth = _ellipsoid(x, y, z, (0, -41, -33), (6.0, 3.5 * left, 8.0))
        parts = (
            _tube(side, y, z, _FRONTAL, _FRONTAL_RADII, size),
            _tube(side, y, z, _OCCIPITAL, _OCCIPITAL_RADII, size),
            _tube(side, y, z, _TEMPORAL, _TEMPORAL_RADII, size),
        )
        lateral = np.maximum(np.minimum.reduce(parts), 0.9 - side)  # the septum keeps the two apart
        left, right = (value * (1.0 - 0.19 * severity) for value in shape.hippocampus)
        size = np.where(x < 0, np.float32(left), np.float32(right))
        return cls(
            envelope=envelope,
            pial=pial,
            ventricles=np.minimum(np.minimum(lateral, third), fourth),
            hippocampi=_tube(side, y, z, _HIPPOCAMPUS, _HIPPOCAMPUS_RADII, size),
            nuclei=_nuclei(side, y, z, shape.nuclei),
        )


def _waves(rng: np.random.Generator, count: int, length: float) -> Array:
    """Return random wave vectors (count, 3) with wavelengths of about ``length`` mm."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return (direction * (2 * np.pi / length * rng.uniform(0.8, 1.25, (count, 1)))).astype(np.float32)


def _bend(points: Array, shape: BrainShape) -> Array:
    swing = np.sin(shape.bend @ points + shape.bend_phases[:, None])
    return points + shape.bend_amplitudes.T @ swing


def _ellipsoid(x: Array, y: Array, z: Array, center: tuple[float, ...], axes: tuple[float, ...]) -> Array:
    """Return the distance to an ellipsoid, exact on its surface and accurate near it."""
    parts = [(v - np.float32(c), np.float32(a)) for v, c, a in zip((x, y, z), center, axes, strict=True)]
    level = np.sqrt(sum((v / a) ** 2 for v, a in parts)) + np.float32(1e-6)
    slope = np.sqrt(sum((v / (a * a)) ** 2 for v, a in parts)) + np.float32(1e-6)
    return np.asarray(level * (level - 1) / slope, np.float32)


def _tube(
    x: Array, y: Array, z: Array, line: tuple[tuple[float, ...], ...], radii: tuple[float, ...], size: Array
) -> Array:
    """Return the distance to a tube along a polyline whose radius, times ``size``, varies along it."""
    nearest = np.full(x.shape, np.inf, np.float32)
    point = np.stack([x, y, z])
    for (start, end), (first, last) in zip(pairwise(line), pairwise(radii), strict=True):
        origin = np.asarray(start, np.float32)[:, None]
        along = np.asarray(end, np.float32)[:, None] - origin
        position = np.clip(((point - origin) * along).sum(0) / (along * along).sum(), 0.0, 1.0)
        radius = (first + (last - first) * position) * size
        nearest = np.minimum(nearest, np.linalg.norm(point - origin - along * position, axis=0) - radius)
    return nearest


def _smooth_min(first: Array, second: Array, width: float) -> Array:
    share = np.clip(0.5 + 0.5 * (second - first) / width, 0.0, 1.0)
    return second + (first - second) * share - width * share * (1.0 - share)


def _cerebrum(side: Array, y: Array, z: Array) -> Array:
    """Return the distance to the two hemispheres; ``side`` is the distance from the midline."""
    main = _ellipsoid(side, y, z, (3, -2, 16), (64, 86, 52))
    main = _smooth_min(main, _ellipsoid(side, y, z, (26, 34, 8), (34, 44, 34)), 8.0)
    main = np.maximum(main, -(z + 21 + 0.12 * (y - 10)))  # the flat base of the frontal and parietal lobes
    temporal = _ellipsoid(side, y, z, (42, -4, -18), (23, 44, 20))
    occipital = _ellipsoid(side, y, z, (22, -58, 4), (25, 28, 25))
    return _smooth_min(_smooth_min(main, temporal, 5.0), occipital, 8.0)


def _folds(points: Array, depth: Array, shape: BrainShape, gap: float) -> Array:
    """Return the distance to the banks of the sulci: radial sheets where the folding pattern is zero."""
    x, y, z = points
    base = np.stack([x, y * 0.8, (z - 12.0) * 1.1])
    radius = np.linalg.norm(base, axis=0) + np.float32(1e-3)
    swirl = 3.0 * np.sin(base[[1, 2, 0]] * np.float32(2 * np.pi / 38.0) + shape.phases[:3, None])
    pattern = np.sin(shape.waves @ (base * (_SHELL / radius) + swirl) + shape.phases[:, None]).sum(0)
    steepness = np.float32(np.sqrt(_SULCI / 2) * 2 * np.pi / _FOLD * 0.8)
    sheet = np.abs(pattern) / steepness * np.clip(radius / _SHELL, 0.5, 1.2)
    # The sheets end at the sulcal depth, and before they would meet at the center of the brain.
    below = np.maximum(np.maximum(depth - shape.sulcus_depth, 42.0 - radius), 0.0)
    return np.asarray(np.hypot(sheet, below) - gap, np.float32)


def _fissure(side: Array, y: Array, z: Array) -> Array:
    """Return the distance to the interhemispheric fissure, which ends above and around the corpus callosum."""
    ring = np.sqrt(((y + 4) / 46) ** 2 + ((z - 4) / 29) ** 2)
    return np.hypot(side, np.maximum(1.0 - ring, 0.0) * 29.0)


def _cerebellum(side: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Return the distance to the cerebellum, and the depth below its foliated surface (positive inside)."""
    surface = _ellipsoid(side, y, z, (20, -52, -36), (32, 29, 21))
    surface = _smooth_min(surface, _ellipsoid(side, y, z, (0, -48, -32), (14, 26, 22)), 6.0)
    folia = np.abs(np.sin((z + 0.4 * (y + 52)) * np.float32(2 * np.pi / 15.0))) * 3.0
    below = np.maximum(-surface - 10.0, 0.0)
    return surface, np.minimum(-surface, np.hypot(folia, below) - 0.5)


def _nuclei(side: Array, y: Array, z: Array, size: float) -> Array:
    parts = (
        ((10.5, -16, 7), (8.5, 14, 8.5)),
        ((13.5, 14, 11), (4.8, 14, 8.5)),
        ((25, 3, 2), (5.5, 16, 9.5)),
    )
    distances = [_ellipsoid(side, y, z, c, tuple(a * size for a in axes)) for c, axes in parts]
    return np.minimum.reduce(distances)
