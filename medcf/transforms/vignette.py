# SPDX-License-Identifier: Apache-2.0
"""Augmentation: hides the edges of the field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from torch import Tensor

from medcf.transforms.images import TORCH, check_range

__all__ = ["RandVignette", "RandVignetteD", "RandVignetteDict", "RandVignetted"]


class RandVignette(RandomizableTransform):
    """Blacken the image outside a random ellipse, so that the sector's edges do not reveal the subject.

    Without it, the shape of the sector alone separates two scanners' subjects, and a network would ignore the head.

    Args:
        prob: probability of a change.
        radius: smallest and largest semi-axis, as a fraction of half the image size; drawn separately for each axis.
        fill: value outside; the default is black for an image in [-1, 1].
    """

    backend = TORCH

    def __init__(self, prob: float = 0.7, radius: tuple[float, float] = (0.85, 1.15), fill: float = -1.0) -> None:
        super().__init__(prob)
        self.radius = radius
        self.fill = fill
        self._radii: list[float] = []

    def randomize(self, data: Sequence[int]) -> None:
        """Draw whether images of a spatial size are changed, and by which ellipse."""
        super().randomize(None)
        if self._do_transform:
            self._radii = [self.R.uniform(*self.radius) for _ in data]

    def __call__(self, image: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        """Change an image (C, *spatial) in [-1, 1].

        Args:
            image: the image.
            randomize: draw a new ellipse; False reuses the last one.

        Raises:
            ValueError: if the image is in other units.
        """
        tensor = torch.as_tensor(image)
        check_range("image", tensor)
        if randomize:
            self.randomize(tensor.shape[1:])
        if not self._do_transform:
            return tensor
        axes = [torch.linspace(-1, 1, n) / radius for n, radius in zip(tensor.shape[1:], self._radii, strict=True)]
        outside = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0) > 1
        return tensor.masked_fill(outside.to(tensor.device), self.fill)


class RandVignetted(MapTransform, Randomizable):
    """Dictionary version of `RandVignette`.

    Args:
        keys: images (C, *spatial) to change, all with the same ellipse.
        prob, radius, fill: see `RandVignette`.
        allow_missing_keys: whether keys may be missing.
    """

    backend = RandVignette.backend

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.7,
        radius: tuple[float, float] = (0.85, 1.15),
        fill: float = -1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RandVignette(prob, radius, fill)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandVignetted:
        """Seed the ellipses."""
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of one item."""
        item = dict(data)
        drawn = False
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key], randomize=not drawn)
            drawn = True
        return item


RandVignetteD = RandVignetteDict = RandVignetted
