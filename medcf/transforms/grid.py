# SPDX-License-Identifier: Apache-2.0
"""Resamples images onto the network's grid, and whatever the network made of them back to the study's matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys

from medcf.data import from_grid, to_grid

__all__ = ["GridTransform", "ToGrid", "ToGridD", "ToGridDict", "ToGridd"]


class GridTransform(InvertibleTransform):
    """Onto a grid by a record of the way, and back by MONAI's ``Invert``.

    The record is in the meta data (``grid_record``, see :func:`medcf.data.grid_record`) and among the applied
    operations. The inverse is linear and zero outside of the grid, which suits a difference; it does not change the
    units.
    """

    def remember(self, image: torch.Tensor, grid: MetaTensor, record: Mapping[str, Any]) -> MetaTensor:
        """Keep the record of the way from ``image`` (C, *spatial) to ``grid`` on the grid, which is returned."""
        grid.meta["grid_record"] = record
        grid.applied_operations = list(getattr(image, "applied_operations", []))
        self.push_transform(grid, orig_size=image.shape[1:], extra_info={"record": record})
        return grid

    @abstractmethod
    def back(self, data: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
        """Resample (C, *size) by a record to (C, *spatial)."""

    def inverse(self, data: torch.Tensor) -> MetaTensor:
        """Resample what came of the grid, (C, *size), to the pixels or voxels of what was put onto it.

        Raises:
            TypeError: if ``data`` is not a MetaTensor that carries the record of the way.
        """
        if not isinstance(data, MetaTensor):
            name, got = type(self).__name__, type(data).__name__
            raise TypeError(f"data must be a MetaTensor that went through {name}, got {got}")
        transform = self.pop_transform(data)
        native = self.back(data, transform[TraceKeys.EXTRA_INFO]["record"])
        meta: dict[str, Any] = {k: v for k, v in data.meta.items() if k not in ("affine", "grid_record")}
        affine = data.meta.get("original_affine")
        return MetaTensor(native, affine=affine, meta=meta, applied_operations=data.applied_operations)


class ToGrid(GridTransform):
    """Resample a study onto the network's grid, see :func:`medcf.data.to_grid`, and back, see `GridTransform`.

    Args:
        size: rows and columns of the grid.
        spacing: mm between rows and columns: one number or two.
        intensity: what black (0) and white (1) become.
    """

    def __init__(
        self,
        size: Sequence[int] = (64, 80),
        spacing: float | Sequence[float] = 1.75,
        intensity: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self.size = tuple(size)
        self.spacing = spacing
        self.intensity = (float(intensity[0]), float(intensity[1]))

    def __call__(self, image: torch.Tensor) -> MetaTensor:
        """Resample (1 or 3, H, W) in [0, 1] to (1, *size) in the range ``intensity``."""
        return self.remember(image, *to_grid(image, self.size, self.spacing, intensity=self.intensity))

    def back(self, data: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
        """Resample (C, *size) to (C, H, W) of the study."""
        return from_grid(data, record)


class ToGridd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`ToGrid`.

    Args:
        keys: images to resample.
        size: rows and columns of the grid.
        spacing: mm between rows and columns: one number or two.
        intensity: what black (0) and white (1) become.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int] = (64, 80),
        spacing: float | Sequence[float] = 1.75,
        intensity: tuple[float, float] = (-1.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.resampler = ToGrid(size, spacing, intensity)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Resample the images of one case; other entries are kept."""
        resampled = dict(data)
        for key in self.key_iterator(resampled):
            resampled[key] = self.resampler(resampled[key])
        return resampled

    def inverse(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Bring the entries back to the matrix of the study."""
        native = dict(data)
        for key in self.key_iterator(native):
            native[key] = self.resampler.inverse(native[key])
        return native


ToGridD = ToGridDict = ToGridd
