# SPDX-License-Identifier: Apache-2.0
"""Augmentation as an ultrasound machine would do it: speckle, acoustic shadows, gain.

Images are B-mode after log compression, (C, *spatial): gray values are decibels. The beam runs along one axis, from its
start, as in a linear array's picture, or in a sector's well below the apex.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import GaussianSmooth, MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from medcf.transforms.images import TORCH

__all__ = [
    "RandAcousticShadow",
    "RandAcousticShadowD",
    "RandAcousticShadowDict",
    "RandAcousticShadowd",
    "RandGain",
    "RandGainD",
    "RandGainDict",
    "RandGaind",
    "RandSpeckle",
    "RandSpeckleD",
    "RandSpeckleDict",
    "RandSpeckled",
]

Range = tuple[float, float]


class _RandDecibels(RandomizableTransform):
    """Add a random field in decibels to an image; black stays black.

    Args:
        prob: probability of a change.
        dynamic_range: decibels between black and white.
        intensity: gray values of black and white; None takes 0 and 1, 0 and 255, or -1 and 1, whichever the image's
            own values fit.
    """

    backend = TORCH

    def __init__(self, prob: float, dynamic_range: float, intensity: Range | None) -> None:
        super().__init__(prob)
        if dynamic_range <= 0:
            raise ValueError(f"dynamic_range={dynamic_range} dB must be positive.")
        self.dynamic_range, self.intensity = dynamic_range, intensity
        self._field: Tensor | None = None

    def field(self, size: Sequence[int]) -> Tensor:
        """Draw a field in decibels of a spatial size."""
        raise NotImplementedError

    def randomize(self, data: Sequence[int]) -> None:
        """Draw whether images of a spatial size are changed, and how."""
        super().randomize(None)
        self._field = self.field(data) if self._do_transform else None

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Change an image (C, *spatial).

        Args:
            img: the image.
            randomize: draw anew; False repeats the last draw.
        """
        values: Tensor = convert_to_tensor(img, track_meta=False).float()
        if randomize:
            self.randomize(values.shape[1:])
        if self._field is None:
            return img
        low, high = _ends(values) if self.intensity is None else self.intensity
        changed = values + self._field.to(values) * ((high - low) / self.dynamic_range)
        changed = torch.where(values <= low, values, changed.clamp(low, high))
        return convert_to_dst_type(changed, img)[0]


class RandSpeckle(_RandDecibels):
    """Multiply the echoes by other speckle.

    Fully developed speckle is the magnitude of a sum of many echoes of random phase: its amplitude is Rayleigh
    distributed, whatever the tissue, and correlated over a resolution cell; after log compression it is added. The
    image has speckle of its own, so only a share of the decibels is added. Source: Burckhardt, "Speckle in ultrasound
    B-mode scans", IEEE Trans. Sonics Ultrason. 1978.

    Args:
        prob: probability of a change.
        strength: smallest and largest share of fully developed speckle's decibels, whose standard deviation is 5.57.
        cell: full width at half maximum of a resolution cell, in pixels along each axis, or one number for all.
        dynamic_range, intensity: decibels between black and white, and their gray values; None guesses 0 and 1, 0 and
            255 or -1 and 1 from the image.
    """

    def __init__(
        self,
        prob: float = 0.5,
        strength: Range = (0.2, 0.6),
        cell: float | Sequence[float] = 2.0,
        dynamic_range: float = 60.0,
        intensity: Range | None = None,
    ) -> None:
        super().__init__(prob, dynamic_range, intensity)
        self.strength, self.cell = strength, cell

    def field(self, size: Sequence[int]) -> Tensor:
        """Draw the logarithm of a Rayleigh distributed amplitude of unit power, times a strength."""
        noise = torch.from_numpy(self.R.standard_normal((2, *size)).astype(np.float32))
        cells = np.broadcast_to(self.cell, len(size))
        sigma = [float(cell) / math.sqrt(8 * math.log(2)) for cell in cells]
        parts = convert_to_tensor(GaussianSmooth(sigma)(noise), track_meta=False) if max(sigma) > 0 else noise
        power = parts.square().sum(0, keepdim=True)
        power = power / power.mean()
        return 10 * torch.log10(power.clamp_min(1e-6)) * self.R.uniform(*self.strength)


class RandGain(_RandDecibels):
    """Change the gain and the time gain compensation: decibels that vary smoothly with depth.

    Args:
        prob: probability of a change.
        gain: smallest and largest overall gain in decibels.
        compensation: standard deviation, in decibels, of each slider of the time gain compensation.
        sliders: number of the sliders, evenly spaced over the depth.
        axis: spatial axis of the beam.
        dynamic_range, intensity: see `RandSpeckle`.
    """

    def __init__(
        self,
        prob: float = 0.5,
        gain: Range = (-6.0, 6.0),
        compensation: float = 2.0,
        sliders: int = 8,
        axis: int = -1,
        dynamic_range: float = 60.0,
        intensity: Range | None = None,
    ) -> None:
        super().__init__(prob, dynamic_range, intensity)
        if sliders < 2:
            raise ValueError(f"sliders={sliders}: use 2 or more.")
        self.gain, self.compensation, self.sliders, self.axis = gain, compensation, sliders, axis

    def field(self, size: Sequence[int]) -> Tensor:
        """Draw the gain at each depth."""
        depth = np.linspace(0, 1, size[self.axis])
        sliders = self.R.normal(0, self.compensation, self.sliders)
        values = self.R.uniform(*self.gain) + np.interp(depth, np.linspace(0, 1, self.sliders), sliders)
        return torch.from_numpy(values.astype(np.float32)).view(_along(self.axis, len(size)))


class RandAcousticShadow(_RandDecibels):
    """Cast the shadow of bone or gas: behind a depth, a part of the beams is attenuated, and the more the deeper.

    Args:
        prob: probability of a change.
        num_shadows: smallest and largest number of shadows.
        width: smallest and largest width of a shadow, as a fraction of the picture across the beams.
        depth: smallest and largest depth from which on it falls, as a fraction of the depth.
        attenuation: smallest and largest attenuation at the deepest point, in decibels; half of it is the obstacle's
            own.
        axis: spatial axis of the beam.
        dynamic_range, intensity: see `RandSpeckle`.
    """

    def __init__(
        self,
        prob: float = 0.5,
        num_shadows: tuple[int, int] = (1, 3),
        width: Range = (0.03, 0.15),
        depth: Range = (0.1, 0.6),
        attenuation: Range = (10.0, 40.0),
        axis: int = -1,
        dynamic_range: float = 60.0,
        intensity: Range | None = None,
    ) -> None:
        super().__init__(prob, dynamic_range, intensity)
        self.num_shadows, self.width, self.depth, self.attenuation = num_shadows, width, depth, attenuation
        self.axis = axis

    def field(self, size: Sequence[int]) -> Tensor:
        """Draw the attenuation of each point, with soft edges."""
        count = len(size)
        deep = self.axis % count
        down = torch.linspace(0, 1, size[deep]).view(_along(deep, count))
        total = torch.zeros(1, *size)
        for _ in range(self.R.randint(self.num_shadows[0], self.num_shadows[1] + 1)):
            start, decibels = self.R.uniform(*self.depth), self.R.uniform(*self.attenuation)
            below = ((down - start) / max(1 - start, 1e-6)).clamp(0, 1)
            fall = torch.where(down >= start, 0.5 + 0.5 * below, torch.zeros(()))
            across = torch.ones(1, *(1,) * count)
            for axis in set(range(count)) - {deep}:
                place, half = self.R.uniform(0, 1), self.R.uniform(*self.width) / 2
                distance = (torch.linspace(0, 1, size[axis]).view(_along(axis, count)) - place).abs()
                across = across * torch.sigmoid((half - distance) / max(half / 4, 1e-6))
            total = total - decibels * fall * across
        return total


class _RandDecibelsd(RandomizableTransform, MapTransform):
    """Dictionary version: all images of a sample get the same field.

    Args:
        keys: images (C, *spatial) of the same size.
        prob: probability of a change.
        allow_missing_keys: whether keys may be missing.
        options: of the array transform.
    """

    array: type[_RandDecibels]
    backend = TORCH

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, allow_missing_keys: bool = False, **options: Any
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.transform = self.array(prob=1.0, **options)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Any:
        """Set the random state, here and of the array transform."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of one sample."""
        sample = dict(data)
        self.randomize(None)
        if self._do_transform:
            for place, key in enumerate(self.key_iterator(sample)):
                sample[key] = self.transform(sample[key], randomize=place == 0)
        return sample


class RandSpeckled(_RandDecibelsd):
    """Dictionary version of `RandSpeckle`: ``RandSpeckled(keys, prob, **options)``."""

    array = RandSpeckle


class RandGaind(_RandDecibelsd):
    """Dictionary version of `RandGain`: ``RandGaind(keys, prob, **options)``."""

    array = RandGain


class RandAcousticShadowd(_RandDecibelsd):
    """Dictionary version of `RandAcousticShadow`: ``RandAcousticShadowd(keys, prob, **options)``."""

    array = RandAcousticShadow


def _along(axis: int, count: int) -> tuple[int, ...]:
    """Return the shape of a profile along one spatial axis, of an image (1, *spatial)."""
    return (1, *(-1 if place == axis % count else 1 for place in range(count)))


def _ends(values: Tensor) -> Range:
    """Return black and white, guessed from the values."""
    low, high = (float(end) for end in values.aminmax())
    if low < 0:
        return -1.0, max(1.0, high)
    return 0.0, 1.0 if high <= 1 else 255.0 if high <= 255 else high


RandSpeckleD = RandSpeckleDict = RandSpeckled
RandGainD = RandGainDict = RandGaind
RandAcousticShadowD = RandAcousticShadowDict = RandAcousticShadowd
