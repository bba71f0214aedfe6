# SPDX-License-Identifier: Apache-2.0
"""A seeded, skull-stripped T1-weighted brain whose disease grows continuously in the same subject."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medcf.phantoms.brain.anatomy import Array, Brain, BrainShape, coverage
from medcf.registry import PHANTOMS

__all__ = ["TISSUES", "BrainMRI", "BrainSample", "BrainState"]

#: Names of the segmentation labels, starting from 1.
TISSUES = ("csf", "gm", "wm", "ventricles", "hippocampi")

_SEVERITIES = ((0.0, 0.3), (0.6, 1.0))  # for class 0 (CN) and class 1 (AD)


@dataclass(frozen=True)
class BrainState:
    """What the disease changes in a subject.

    Attributes:
        severity: from 0 (healthy) to 1; below 0.45 the class is CN (0), otherwise AD (1).
    """

    severity: float = 0.1

    @classmethod
    def typical(cls, label: int) -> BrainState:
        """The center of a class: severity 0.15 for CN (0), 0.8 for AD (1)."""
        low, high = _SEVERITIES[_checked(label)]
        return cls((low + high) / 2)

    @property
    def label(self) -> int:
        """Class: 0 CN, 1 AD."""
        return int(self.severity > 0.45)


@dataclass(frozen=True)
class BrainSample:
    """One rendered volume with its complete ground truth; axes are RAS.

    Attributes:
        image: (X, Y, Z) float32 in [0, 1], multiples of 1/255; 0 outside the mask.
        segmentation: (X, Y, Z) uint8: 0 background, 1 sulcal CSF, 2 gray matter, 3 white matter, 4 ventricles,
            5 hippocampi.
        mask: (X, Y, Z) bool, the brain including the fluid in its sulci.
        label: 0 CN, 1 AD.
        severity: severity of the disease, in [0, 1].
        age: years.
        sex: "F" or "M".
        spacing_mm: voxel spacing in mm.
        affine: (4, 4) voxel indices to RAS+ mm.
        volumes_mm3: true volume of each of ``TISSUES``, including partial voxels.
        subject: seed of the subject.
    """

    image: NDArray[np.float32]
    segmentation: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int
    severity: float
    age: float
    sex: str
    spacing_mm: float
    affine: NDArray[np.float64]
    volumes_mm3: dict[str, float]
    subject: int


class BrainMRI:
    """A brain with its scanner: one subject.

    Class labels: 0 cognitively normal (CN), 1 Alzheimer's disease (AD). With increasing severity ventricles grow,
    hippocampi and cortex shrink, sulci widen, and the contrast between gray and white matter falls. Age (which also
    widens the ventricles) and sex (size) are nuisance factors shared by both classes.

    Args:
        seed: the subject.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xB4A1, self.seed])))
        self.age = float(np.clip(rng.normal(73.0, 7.0), 55.0, 90.0))
        self.sex = "M" if rng.random() < 0.5 else "F"
        self.shape = BrainShape.draw(rng, age=self.age, male=self.sex == "M")
        self._gray = float(rng.normal(0.52, 0.02))
        self._white = float(rng.normal(0.87, 0.02))
        self._fluid = float(rng.uniform(0.10, 0.18))
        self._deep = float(rng.uniform(0.35, 0.6))
        self._shading = rng.normal(0.0, 0.025, 9).astype(np.float32)
        self._noise = float(rng.uniform(0.012, 0.028))

    def sample_state(self, rng: np.random.Generator, label: int) -> BrainState:
        """Draw a severity for a class: 0 to 0.3 for CN (0), 0.6 to 1 for AD (1)."""
        return BrainState(float(rng.uniform(*_SEVERITIES[_checked(label)])))

    def render(
        self,
        state: BrainState | None = None,
        *,
        seed: int = 0,
        size: tuple[int, int, int] = (80, 96, 80),
        spacing: float = 2.0,
    ) -> BrainSample:
        """Image the brain.

        Args:
            state: the disease; None for a typical CN.
            seed: seed for the noise only.
            size: voxels along x (right), y (anterior) and z (superior).
            spacing: voxel spacing in mm.

        Returns:
            The image and its ground truth.
        """
        state = BrainState.typical(0) if state is None else state
        if not 0 <= state.severity <= 1:
            raise ValueError(f"severity={state.severity}: it must be in [0, 1].")
        points, near = _points(tuple(size), float(spacing))
        brain = Brain.at(points, self.shape, severity=state.severity)
        shares = _tissue_shares(brain, self._cortex(state), spacing)
        inside = shares[0] > 0.5
        intensity = self._intensities(shares, brain, points, state, spacing)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0x7E5, self.seed, int(seed)])))
        noise = rng.standard_normal((2, *size), dtype=np.float32)[:, near] * self._noise
        magnitude = np.hypot(intensity + noise[0], noise[1])  # Rician
        image, labels = np.zeros(size, np.float32), np.zeros(size, np.uint8)
        image[near] = np.where(inside, np.rint(np.clip(magnitude, 0.004, 1.0) * 255.0) / 255.0, 0.0)
        labels[near] = np.where(inside, 1 + np.argmax(shares[1:], axis=0), 0)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = [-0.5 * spacing * (n - 1) for n in size]
        return BrainSample(
            image=image,
            segmentation=labels,
            mask=labels > 0,
            label=state.label,
            severity=state.severity,
            age=self.age,
            sex=self.sex,
            spacing_mm=float(spacing),
            affine=affine,
            volumes_mm3={
                name: float(share.sum(dtype=np.float64)) * spacing**3
                for name, share in zip(TISSUES, shares[1:], strict=True)
            },
            subject=self.seed,
        )

    def _cortex(self, state: BrainState) -> float:
        return self.shape.cortex * (1.0 - 0.18 * state.severity)

    def _intensities(self, shares: Array, brain: Brain, points: Array, state: BrainState, spacing: float) -> Array:
        gray = self._gray + 0.04 * state.severity
        white = self._white - 0.06 * state.severity
        deep = gray + self._deep * (white - gray)
        values = np.array([self._fluid, gray, white, self._fluid - 0.02, gray], np.float32)
        image = values @ shares[1:] / np.maximum(shares[1:].sum(0), 1e-3)
        nucleus = coverage(brain.nuclei, 1.5 * spacing) * shares[3]
        image = image + nucleus * (deep - white)
        x, y, z = points / np.float32(80.0)
        terms = np.stack([x, y, z, x * x, y * y, z * z, x * y, y * z, x * z])
        return np.asarray(image * (1.0 + self._shading @ terms), np.float32)


def _checked(label: int) -> int:
    if label not in (0, 1):
        raise ValueError(f"label must be 0 (CN) or 1 (AD), not {label!r}")
    return int(label)


@lru_cache(maxsize=4)
def _points(size: tuple[int, ...], spacing: float) -> tuple[Array, NDArray[np.bool_]]:
    """Return voxel centers in mm that may be inside a brain, (3, N), and their positions in the volume."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(spacing) for n in size]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    near = (x / 84.0) ** 2 + (y / 102.0) ** 2 + (z / 84.0) ** 2 < 1.0
    near |= (np.abs(x) < 30) & (np.abs(y + 20) < 30) & (z < -40) & (z > -90)
    full = np.stack(np.broadcast_arrays(x, y, z))
    return np.ascontiguousarray(full[:, near]), near


def _tissue_shares(brain: Brain, cortex: float, spacing: float) -> Array:
    """Return the fraction of every voxel (6, N) in the brain, and in each of ``TISSUES``, which add up to the first."""
    whole = coverage(brain.envelope, spacing)
    ventricles = coverage(brain.ventricles, spacing) * whole
    hippocampi = np.minimum(coverage(brain.hippocampi, spacing), whole - ventricles)
    rest = whole - ventricles - hippocampi
    tissue = np.minimum(coverage(-brain.pial, spacing), rest)
    white = np.minimum(coverage(cortex - brain.pial, spacing), tissue)
    return np.stack([whole, rest - tissue, tissue - white, white, ventricles, hippocampi])


PHANTOMS.add("brain_mri", "3D T1-weighted brain, CN to AD by severity", BrainMRI)
