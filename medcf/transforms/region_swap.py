# SPDX-License-Identifier: Apache-2.0
"""Mixes two states of one subject region by region, so that no structure predicts another."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Randomizable, Transform
from torch import Tensor
from torch.nn import functional

from medcf.transforms.images import TORCH

__all__ = ["RandRegionSwap", "RandRegionSwapD", "RandRegionSwapDict", "RandRegionSwapd"]


class RandRegionSwap(Randomizable, Transform):
    """Take some structures and a box from the subject's other state, in both image and segmentation.

    For a disease that changes everything at once, a segmenter learns to see small hippocampi wherever sulci are wide.
    In a counterfactual it then measures the disease, not the structure. This transform draws the states of a structure,
    of its surroundings and of the rest independently, so only the structure itself is informative.

    Args:
        labels: labels of the structures to swap, each independently.
        prob: probability of each swap; the item as a whole starts from either state with equal probability.
        margin: smallest and largest number of voxels around a structure (in either state) that are swapped with it.
        box: smallest and largest side of the swapped box, as a fraction of each axis.
    """

    backend = TORCH

    def __init__(
        self,
        labels: Sequence[int] = (4, 5),
        prob: float = 0.5,
        margin: tuple[int, int] = (1, 3),
        box: tuple[float, float] = (0.2, 0.6),
    ) -> None:
        self.labels = tuple(labels)
        self.prob = prob
        self.margin = margin
        self.box = box

    def __call__(  # type: ignore[override]
        self,
        image: NdarrayOrTensor,
        segmentation: NdarrayOrTensor,
        other_image: NdarrayOrTensor,
        other_segmentation: NdarrayOrTensor,
    ) -> tuple[Tensor, Tensor]:
        """Mix two states of a subject.

        Args:
            image: the first state, (C, *spatial).
            segmentation: its labels, (1, *spatial).
            other_image: the other state.
            other_segmentation: its labels.

        Returns:
            Image and labels of the mixture.
        """
        own = [torch.as_tensor(each) for each in (image, segmentation)]
        other = [torch.as_tensor(each) for each in (other_image, other_segmentation)]
        if self.R.random() < 0.5:
            own, other = other, own
        taken = torch.zeros_like(own[1], dtype=torch.bool)
        if self.R.random() < self.prob:
            taken[(slice(None), *self._box(own[1].shape[1:]))] = True
        for label in self.labels:
            region = self._around((own[1] == label) | (other[1] == label))
            taken = torch.where(region, torch.tensor(self.R.random() < self.prob), taken)
        mixed = [torch.where(taken, second, first) for first, second in zip(own, other, strict=True)]
        return mixed[0], mixed[1]

    def _box(self, spatial: Sequence[int]) -> list[slice]:
        sides = [max(round(size * self.R.uniform(*self.box)), 1) for size in spatial]
        starts = [int(self.R.randint(size - side + 1)) for size, side in zip(spatial, sides, strict=True)]
        return [slice(start, start + side) for start, side in zip(starts, sides, strict=True)]

    def _around(self, region: Tensor) -> Tensor:
        """Grow a region (1, *spatial) by a random number of voxels."""
        margin = int(self.R.randint(self.margin[0], self.margin[1] + 1))
        pool = functional.max_pool3d if region.ndim == 4 else functional.max_pool2d
        return pool(region.float(), 2 * margin + 1, stride=1, padding=margin).bool()


class RandRegionSwapd(Randomizable, Transform):
    """Dictionary version of `RandRegionSwap`.

    Args:
        keys: image and segmentation of the first state; the result replaces them.
        other_keys: image and segmentation of the other state; removed.
        options: see `RandRegionSwap`.
    """

    backend = RandRegionSwap.backend

    def __init__(
        self,
        keys: Sequence[Hashable] = ("image", "segmentation"),
        other_keys: Sequence[Hashable] = ("image_true", "segmentation_true"),
        **options: Any,
    ) -> None:
        if len(keys) != 2 or len(other_keys) != 2:
            raise ValueError(f"keys={keys} and other_keys={other_keys} must each name an image and its segmentation.")
        self.keys, self.other_keys = tuple(keys), tuple(other_keys)
        self.transform = RandRegionSwap(**options)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandRegionSwapd:
        """Seed the mixtures."""
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Mix one item."""
        item = dict(data)
        images = [item[key] for key in self.keys] + [item.pop(key) for key in self.other_keys]
        return item | dict(zip(self.keys, self.transform(*images), strict=True))


RandRegionSwapD = RandRegionSwapDict = RandRegionSwapd
