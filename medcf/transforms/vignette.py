# SPDX-License-Identifier: Apache-2.0
"""Augmentation: hide the edges of the field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, RandomizableTransform

__all__ = ["RandVignetted"]


class RandVignetted(MapTransform, RandomizableTransform):
    """Blacken the image outside a random ellipse, so that the sector's edges do not give the subject away.

    Without it the shape of the sector alone tells two scanners' subjects apart, and the head would not be looked at.

    Args:
        keys: images (C, *spatial) to change, all by the same ellipse.
        prob: probability of a change.
        radius: lowest and highest semi-axis, as a share of the image's half size; each axis draws its own.
        fill: value outside.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        prob: float = 0.7,
        radius: tuple[float, float] = (0.85, 1.15),
        fill: float = -1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.radius = radius
        self.fill = fill

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change the images of one item."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        spatial = item[self.keys[0]].shape[1:]
        radii = [self.R.uniform(*self.radius) for _ in spatial]
        axes = [torch.linspace(-1, 1, size) / radius for size, radius in zip(spatial, radii, strict=True)]
        outside = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0) > 1
        for key in self.keys:
            item[key] = torch.as_tensor(item[key]).masked_fill(outside, self.fill)
        return item
