# SPDX-License-Identifier: Apache-2.0
"""Effects of a poor scan on a brain phantom: bias field, motion and noise, simulated by torchio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcf.phantoms.brain.brain_mri import BrainSample

__all__ = ["DegradeBrain"]

_ORDER = 3  # order of the bias field's polynomial
_COEFFICIENTS = (_ORDER + 1) * (_ORDER + 2) * (_ORDER + 3) // 6  # monomials up to that order in three variables

Degradable = TypeVar("Degradable", BrainSample, dict[str, Any])


class DegradeBrain:
    """Degrades a `BrainSample` or an item of `BrainDataset`; tissues, labels and volumes are unchanged.

    Every subject has its own bias field, movements and noise, which depend only on ``seed`` and the subject: the same
    call gives the same voxels, whatever the worker or order. The images of a pair get the same field and movements, as
    on one scanner, but different noise. The subject lies still while the center of k-space is measured, so the brain
    stays aligned with its segmentation. The image stays black outside the brain.

    Args:
        bias: largest coefficient of the field exp(polynomial of order 3) in coordinates from -1 to 1; 0 for none, 0.3
            is clearly visible.
        motion: largest rotation in degrees and translation in mm of each movement; 0 for none.
        noise: standard deviation as a fraction of full scale, added before taking the magnitude; 0 for none.
        movements: number of movements.
        keys: images in an item, each with a matching segmentation (``image_true``, ``segmentation_true``).
        spacing: voxel spacing of an item in mm; a `BrainSample` has its own.
        seed: seed of the whole set.

    Raises:
        ValueError: if a strength is negative, or there is no movement.
    """

    def __init__(
        self,
        bias: float = 0.3,
        motion: float = 3.0,
        noise: float = 0.03,
        *,
        movements: int = 2,
        keys: tuple[str, ...] = ("image", "image_true"),
        spacing: float = 4.0,
        seed: int = 0,
    ) -> None:
        for name, value in {"bias": bias, "motion": motion, "noise": noise}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: a strength must be 0 or more.")
        if movements < 1:
            raise ValueError(f"movements={movements}: use at least one; motion=0 disables motion.")
        self.bias, self.motion, self.noise = float(bias), float(motion), float(noise)
        self.movements, self.keys, self.spacing, self.seed = int(movements), tuple(keys), float(spacing), int(seed)

    def __call__(self, data: Degradable) -> Degradable:
        """Degrade a sample or an item.

        Args:
            data: a `BrainSample`, or an item with ``subject``, images (1, X, Y, Z) in [-1, 1] and segmentations.

        Returns:
            A new one of the same kind.
        """
        if isinstance(data, BrainSample):
            image = torch.from_numpy(data.image)[None]
            found = self._degrade(image, torch.from_numpy(data.mask)[None], data.affine, data.subject, 0)
            return replace(data, image=found[0].numpy())
        if not isinstance(data, Mapping):
            raise TypeError(f"data must be a BrainSample or an item of BrainDataset, got {type(data).__name__}")
        item = dict(data)
        affine = np.diag([self.spacing, self.spacing, self.spacing, 1.0])
        for number, key in enumerate(self.keys):
            if key in item:
                mask = item[key.replace("image", "segmentation")] > 0
                image = (item[key] + 1.0) / 2.0
                item[key] = self._degrade(image, mask, affine, int(item["subject"]), number) * 2.0 - 1.0
        return item

    def _degrade(self, image: Tensor, mask: Tensor, affine: NDArray[np.float64], subject: int, number: int) -> Tensor:
        """Degrade the gray values (1, X, Y, Z) in [0, 1] of a brain."""
        try:
            import torchio as tio
        except ImportError as error:
            raise ImportError("DegradeBrain needs torchio. Run: python -m pip install 'medcf[degradation]'") from error
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xDE64, self.seed, subject])))
        # draw everything even if unused, so that one strength does not change the draws for another
        coefficients = rng.uniform(-1, 1, _COEFFICIENTS) * self.bias
        coefficients[0] = 0.0  # a constant factor is not a bias field
        degrees, translation = rng.uniform(-1, 1, (2, self.movements, 3)) * self.motion
        times = np.sort(rng.uniform(0.1, 0.9, self.movements))
        noise_seed = int(rng.integers(2**31)) + number
        steps: list[Any] = []
        if self.motion:
            steps.append(tio.Motion(degrees, translation, times, "linear"))
        if self.bias:
            steps.append(tio.BiasField(coefficients.tolist(), _ORDER))
        if self.noise:
            steps.append(tio.Noise(0.0, self.noise, noise_seed))
        scan = tio.ScalarImage(tensor=image.float(), affine=affine)
        with torch.random.fork_rng(devices=[]):  # torchio seeds the process's global generator
            for step in steps:
                scan = step(scan)
        return torch.where(mask, scan.data.abs().clamp(max=1.0), torch.zeros(()))
