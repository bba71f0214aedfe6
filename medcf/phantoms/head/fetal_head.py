# SPDX-License-Identifier: Apache-2.0
"""A seeded 3D fetal head cut by a plane and imaged as B-mode ultrasound."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medcf.phantoms.base import PhantomSample
from medcf.phantoms.head.anatomy import HeadAnatomy
from medcf.phantoms.head.biometry import biometry
from medcf.phantoms.head.concepts import QUALITY_THRESHOLD, fossa_absence, plane_quality, ramp, symmetry
from medcf.phantoms.head.echoes import paint_head
from medcf.phantoms.head.overlays import burn_in
from medcf.phantoms.head.poses import FIELD, HeadPose, Plane, cut, far_pose, near_pose, pixel_grid
from medcf.phantoms.maternal import MaternalTissue
from medcf.phantoms.shapes import Array, coverage
from medcf.phantoms.ultrasound import BeamGrid, Scanner
from medcf.registry import PHANTOMS

__all__ = ["FetalHead"]

_ANGLES = 128  # number of rays for finding the outline of a cut


class FetalHead:
    """A fetal head with its scanner: one subject.

    Segmentation labels: 0 background, 1 skull, 2 thalami, 3 cavum septi pellucidi, 4 posterior fossa.
    Class labels: 0 non-standard plane, 1 standard (transthalamic) plane.

    Args:
        seed: the subject; the same seed gives the same pixels on every machine.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x4EAD, self.seed])))
        self.anatomy = HeadAnatomy.draw(rng)
        self.rotation = float(np.clip(rng.normal(0.0, 9.0), -20.0, 20.0))
        self.facing = 1.0 if rng.random() < 0.5 else -1.0
        angle = np.deg2rad(self.rotation)
        half = float(np.hypot(self.anatomy.bpd / 2 * np.cos(angle), self.anatomy.ofd / 2 * np.sin(angle)))
        self.center = (FIELD[0] / 2 + rng.uniform(-3.0, 5.0), FIELD[1] / 2 + rng.uniform(-6.0, 6.0))
        cover = rng.uniform(9.0, 21.0)
        self.scanner = Scanner.draw(rng, depth=cover + 2 * half + rng.uniform(14.0, 40.0))
        self.apex = (self.center[0] - half - cover, FIELD[1] / 2 + rng.uniform(-6.0, 6.0))
        self._maternal = MaternalTissue.draw(rng)
        self._shadow_angle = rng.uniform(-0.7, 0.7) * self.scanner.half_angle
        self._shadow_width = rng.uniform(0.05, 0.11)

    @staticmethod
    def standard_pose() -> HeadPose:
        """The transthalamic plane through a good acoustic window."""
        return HeadPose()

    def sample_pose(self, rng: np.random.Generator, label: int) -> HeadPose:
        """Draw a pose whose image has the given class.

        Args:
            rng: source of randomness.
            label: 1 for the standard plane with slight jitter, 0 for the whole range of other planes.

        Returns:
            A pose whose quality is on the class's side of ``QUALITY_THRESHOLD``.
        """
        if label not in (0, 1):
            raise ValueError(f"label must be 0 (non-standard plane) or 1 (standard plane), not {label!r}")
        while True:
            pose = near_pose(rng) if label == 1 else far_pose(rng)
            if (self.assess(pose)[1] >= QUALITY_THRESHOLD) == bool(label):
                return pose

    def assess(self, pose: HeadPose) -> tuple[dict[str, float], float]:
        """Return concept scores and quality of a pose, without rendering it.

        Args:
            pose: the plane and its acoustic window.

        Returns:
            Concept scores in [0, 1] by name, and the quality in [0, 1].
        """
        areas, reference = self._areas(pose), self._reference
        skull, extent = self._completeness(pose)
        concepts = {
            "thalami": min(areas[1] / reference[1], 1.0),
            "cavum": min(areas[2] / reference[2], 1.0),
            "fossa_absent": fossa_absence(areas[3], max(areas[0], 1.0)),
            "symmetry": symmetry(pose.roll, pose.offset),
            "skull": skull,
            "magnification": ramp(extent, 0.30, 0.55),
            "window": ramp(pose.penetration * (1.0 - 0.5 * pose.shadow), 0.1, 0.9),
        }
        return concepts, plane_quality(concepts)

    def render(
        self,
        pose: HeadPose | None = None,
        *,
        seed: int = 0,
        size: tuple[int, int] = (128, 160),
        spacing: float = 0.875,
        overlays: bool = False,
    ) -> PhantomSample:
        """Image the head.

        Args:
            pose: the plane; None for the standard plane.
            seed: seed for the speckle; segmentation and scores do not depend on it.
            size: rows and columns of the image.
            spacing: pixel spacing in mm.
            overlays: whether to burn text and calipers into the image.

        Returns:
            The image and its ground truth.
        """
        pose = self.standard_pose() if pose is None else pose
        plane = self._plane(pose)
        grid = BeamGrid(self.scanner, self.apex)
        row, col = pixel_grid(size, spacing)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x5EC7, self.seed, int(seed)])))
        gray = self._beams(grid, plane, pose, rng)
        image = np.rint(grid.scan_convert(gray, row, col) * 255.0).astype(np.uint8)
        segmentation = self._labels(plane, row, col)
        segmentation[~grid.inside(row, col)] = 0
        contour = self._contour(plane)
        hc, bpd = biometry(contour)
        concepts, quality = self.assess(pose)
        sample = PhantomSample(
            image=image.astype(np.float32) / np.float32(255.0),
            segmentation=segmentation,
            concepts=concepts,
            quality=quality,
            label=int(quality >= QUALITY_THRESHOLD),
            spacing_mm=(spacing, spacing),
            hc_mm=hc,
            bpd_mm=bpd,
            subject=self.seed,
            pose=pose,
        )
        if overlays:
            burned = burn_in(sample, color=False).astype(np.float32) / np.float32(255.0)
            sample = replace(sample, image=burned)
        return sample

    @cached_property
    def _reference(self) -> tuple[float, float, float, float]:
        """Areas in the standard plane."""
        return self._areas(self.standard_pose())

    def _plane(self, pose: HeadPose) -> Plane:
        return cut(pose, self.rotation, self.facing, self.center)

    def _shade(self, angle: Array, pose: HeadPose) -> Array:
        """Return the fraction of the sound that a pose's shadow leaves on beams at the given angles."""
        return 1.0 - pose.shadow * np.exp(-(((angle - self._shadow_angle) / self._shadow_width) ** 2))

    def _areas(self, pose: HeadPose) -> tuple[float, float, float, float]:
        """Return the areas in mm² of the head and, outside the shadow, of thalami, cavum and posterior fossa."""
        step = 1.75
        row, col = pixel_grid((64, 80), step)
        plane = self._plane(pose)
        parts = self.anatomy.structures(*plane.points(row, col))
        grid = BeamGrid(self.scanner, self.apex)
        seen = self._shade(grid.locate(row, col)[1], pose)
        area = step * step
        return (
            float(coverage(parts.head, step).sum()) * area,
            float((coverage(parts.thalami, step) * seen).sum()) * area,
            float((coverage(parts.cavum, step) * seen).sum()) * area,
            float(coverage(parts.fossa, step).sum()) * area,
        )

    def _completeness(self, pose: HeadPose) -> tuple[float, float]:
        """Return the fraction of the outline that is visible, and the cut's length relative to the field's width."""
        contour = self._contour(self._plane(pose))
        row, col = contour
        grid = BeamGrid(self.scanner, self.apex)
        depth, angle = grid.locate(row, col)
        inside = coverage(np.abs(row - FIELD[0] / 2) - FIELD[0] / 2, 4.0)
        inside = inside * coverage(np.abs(col - FIELD[1] / 2) - FIELD[1] / 2, 4.0)
        inside = inside * coverage((np.abs(angle) - self.scanner.half_angle) * (depth + self.scanner.radius), 4.0)
        seen = inside * self._shade(angle, pose)
        return float(seen.mean()), float(np.ptp(col)) / FIELD[1]

    def _contour(self, plane: Plane) -> tuple[Array, Array]:
        """Return rows and columns in mm of the outer outline of the cut, by bisection along rays."""
        angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
        dv, du = np.sin(angle), np.cos(angle)
        low, high = np.zeros(_ANGLES), np.full(_ANGLES, 90.0)
        for _ in range(18):
            middle = 0.5 * (low + high)
            inside = self.anatomy.outline(*plane.points(plane.center[0] + middle * dv, plane.center[1] + middle * du))[
                0
            ]
            low, high = np.where(inside < 0, middle, low), np.where(inside < 0, high, middle)
        return plane.center[0] + low * dv, plane.center[1] + low * du

    def _labels(self, plane: Plane, row: Array, col: Array) -> NDArray[np.uint8]:
        return self.anatomy.structures(*plane.points(row, col)).labels()

    def _beams(self, grid: BeamGrid, plane: Plane, pose: HeadPose, rng: np.random.Generator) -> Array:
        """Return the gray values on the beams."""
        scanner, anatomy = self.scanner, self.anatomy
        layers = self._maternal.texture(grid)
        head, normal = anatomy.outline(*plane.points(grid.row, grid.col))
        scatter, specular = self._maternal.surround(grid, head, layers, plane.center)
        scatter, specular, bone = paint_head(anatomy, plane, grid, (head, normal), layers, scatter, specular)

        step = scanner.depth / grid.shape[0]
        entered = np.cumsum(head < 0, axis=0) * step  # mm traveled inside the head
        loss = grid.accumulate(scanner.bone * bone)
        loss = loss + grid.depth[:, None] * scanner.tgc
        loss = loss + (1.0 - pose.penetration) * (4.0 + 0.16 * grid.depth[:, None])
        loss = loss - 26.0 * np.log10(np.maximum(self._shade(grid.angle, pose), 0.03))[None, :]
        loss = loss + 5.0 * (np.abs(grid.angle) / scanner.half_angle)[None, :] ** 6
        fade = 10.0 ** (-loss / 20.0)
        # Reverberation below the near skull hides the upper hemisphere; a poor window makes it worse.
        haze = scanner.haze * (1.0 + 1.5 * (1.0 - pose.penetration)) * np.exp(-entered / 11.0) * (head < 0)
        haze = haze * np.exp(0.35 * layers) + 0.0009
        envelope = grid.envelope(np.sqrt((scatter * fade) ** 2 + haze**2), specular * fade, rng)
        return grid.compress(envelope)


PHANTOMS.add("fetal_head", "3D fetal head cut by a plane, imaged as B-mode ultrasound", FetalHead)
