# SPDX-License-Identifier: Apache-2.0
"""Resamples images onto the network's grid, and results back to the images' own matrix."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import MetaKeys, TraceKeys

from medcf.data import Grid, read
from medcf.data.image import geometry, meta_of, picture_affine
from medcf.runtime.errors import UnreadableImage
from medcf.transforms.images import TORCH, as_image, as_picture

__all__ = ["ToGrid", "ToGridD", "ToGridDict", "ToGridd"]


class ToGrid(InvertibleTransform):
    """Resample an image onto the network's grid, see `medcf.data.Grid`, and back by MONAI's ``Invert``.

    The record of the mapping is stored in the metadata (``grid_record``, see `medcf.data.grid_record`) and among the
    applied operations. The inverse is linear and zero outside the grid, as suits a difference; it does not change
    units.

    Args:
        size, spacing, axes, subject, center, percentile, intensity: see `medcf.data.Grid`; for axes and subject, None
            means "screen" and "picture" with two sizes, "RAS" and "auto" with three.
        template: file of a volume to register to first (SimpleITK); None skips registration.
        registration: ``"rigid"`` or ``"affine"``.

    Raises:
        ValueError: if an option is invalid.
        UnreadableImage: if the template cannot be read.
    """

    backend = TORCH

    def __init__(
        self,
        size: Sequence[int] = (64, 80),
        spacing: float | Sequence[float] | None = 1.75,
        axes: str | None = None,
        subject: str | Callable[[torch.Tensor], torch.Tensor] | None = None,
        center: str = "subject",
        percentile: float = 99.5,
        intensity: Sequence[float] | None = None,
        template: str | Path | None = None,
        registration: str = "rigid",
    ) -> None:
        flat = np.size(size) == 2
        self.grid = Grid(
            size=size,
            spacing=spacing,
            axes=axes or ("screen" if flat else "RAS"),
            subject=subject or ("picture" if flat else "auto"),
            center=center,
            percentile=percentile,
            intensity=None if intensity is None else (float(intensity[0]), float(intensity[1])),
        )
        if registration not in ("rigid", "affine"):
            raise ValueError(f"registration={registration!r} is neither 'rigid' nor 'affine'.")
        self.registration = registration
        self.template = None if template is None else read(template)

    def __call__(self, image: NdarrayOrTensor, mask: NdarrayOrTensor | None = None) -> MetaTensor:
        """Resample a picture (1 or 3, X, Y) or a volume (1, X, Y, Z) to (1, *size) in [-1, 1].

        Args:
            image: the image.
            mask: its subject, (1, *spatial); None takes the meta entry ``mask``, or searches for the subject.

        Raises:
            UnreadableImage: if no subject is found, or no voxel of the grid belongs to it.
            RuntimeError: if MONAI's metadata tracking, which ToGrid needs for the inverse, is off.
        """
        if not get_track_meta():
            raise RuntimeError(
                "ToGrid stores the inverse in MONAI's metadata, which are switched off: call "
                "monai.data.set_track_meta(True)."
            )
        image = as_picture(image) if len(self.grid.size) == 2 else as_image(image)
        meta = getattr(image, "meta", {})
        name = str(meta.get("filename_or_obj", "the image"))
        given = meta.get("mask") if mask is None else mask
        given = None if given is None else torch.as_tensor(given)
        try:
            record = self.grid.fit(image, given)
            if self.template is not None:
                from medcf.transforms.corrections import register

                record = self.grid.fit(
                    image, record.mask, register(image, record.mask, self.template, self.registration)
                )
        except ValueError as error:
            reason = f"cannot be put onto the network's grid ({error})"
            raise UnreadableImage(name, reason, "Check the image and its mask.") from error
        grid = self.grid.to(image, record)
        if record.mask is not None and not bool((grid > -1).any()):
            raise UnreadableImage(name, "holds less brain than a voxel of the grid", "Check the volume and its mask.")
        if record.mask is None and not geometry(image)[1]:  # the picture has a default position only
            grid.meta[str(MetaKeys.ORIGINAL_AFFINE)] = picture_affine()
        grid.meta["grid_record"] = record
        grid.applied_operations = list(getattr(image, "applied_operations", []))
        self.push_transform(grid, orig_size=image.shape[1:], extra_info={"record": record})
        return grid

    def inverse(self, data: torch.Tensor) -> MetaTensor:
        """Resample a result on the grid, (C, *size), to the pixels or voxels of the original image.

        Raises:
            TypeError: if ``data`` is not a MetaTensor with a grid record.
        """
        if not isinstance(data, MetaTensor):
            raise TypeError(f"data must be a MetaTensor that went through ToGrid, got {type(data).__name__}")
        record = self.pop_transform(data)[TraceKeys.EXTRA_INFO]["record"]
        affine = record.image.affine
        meta = meta_of(data, "grid_record")
        meta[str(MetaKeys.ORIGINAL_AFFINE)] = meta_of(record.image).get(str(MetaKeys.ORIGINAL_AFFINE), affine)
        return MetaTensor(record.back(data), affine=affine, meta=meta, applied_operations=data.applied_operations)


class ToGridd(MapTransform, InvertibleTransform):
    """Dictionary version of `ToGrid`.

    Args:
        keys: images to resample.
        mask_key: key of the subject's mask, if any; it is removed, because the record then holds it.
        allow_missing_keys: whether keys may be missing.
        options: options of `ToGrid`.
    """

    backend = ToGrid.backend

    def __init__(
        self, keys: KeysCollection, mask_key: str = "mask", allow_missing_keys: bool = False, **options: Any
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mask_key = mask_key
        self.resampler = ToGrid(**options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample the images of one case; other entries are kept."""
        resampled = dict(data)
        mask = (
            resampled.pop(self.mask_key, None)
            if isinstance(data.get(self.mask_key), torch.Tensor | np.ndarray)
            else None
        )
        for key in self.key_iterator(resampled):
            resampled[key] = self.resampler(resampled[key], mask)
        return resampled

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map the entries back to the images' own matrix."""
        native = dict(data)
        for key in self.key_iterator(native):
            native[key] = self.resampler.inverse(native[key])
        return native


ToGridD = ToGridDict = ToGridd
