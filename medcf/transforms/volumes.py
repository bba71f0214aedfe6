# SPDX-License-Identifier: Apache-2.0
"""Volumes in a bundle's preprocessing and postprocessing: read, onto the grid, and back to their own voxels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Transform

from medcf.data import grid_record
from medcf.data.volumes import from_volume_grid, read_mask, read_volume, resolve_mask, to_volume_grid
from medcf.data.volumes.brain_mask import MASK_METHODS
from medcf.data.volumes.grid import check_grid_options
from medcf.runtime.errors import UnreadableImage
from medcf.transforms.grid import GridTransform

__all__ = [
    "LoadVolumed",
    "NativeVolume",
    "NativeVolumed",
    "ToVolumeGrid",
    "ToVolumeGridD",
    "ToVolumeGridDict",
    "ToVolumeGridd",
]


class LoadVolumed(Transform):
    """Replaces a case's path by its volume, and keeps the volume as it was read.

    Args:
        image_key: holds the path; then the volume (1, X, Y, Z) in stored units, a MetaTensor.
        original_key: the same volume, which later transforms leave alone.
        files_key: holds the files of a DICOM series, if the case is one.
        mask_key: holds the path of a brain mask, if the case has one; then the mask, bool (1, X, Y, Z).
    """

    def __init__(
        self,
        image_key: str = "image",
        original_key: str = "original",
        files_key: str = "files",
        mask_key: str = "mask",
    ) -> None:
        self.image_key = image_key
        self.original_key = original_key
        self.files_key = files_key
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the volume, and its mask if there is one.

        Raises:
            UnreadableImage: a file is damaged, or no volume, or the mask does not fit it.
        """
        image = read_volume(data.get(self.files_key) or data[self.image_key])
        loaded = {**data, self.image_key: image, self.original_key: image.clone()}
        mask = data.get(self.mask_key)
        if isinstance(mask, str | Path):
            loaded[self.mask_key] = read_mask(mask, image)
        return loaded


class ToVolumeGrid(GridTransform):
    """Put a volume onto the grid, see :func:`medcf.data.volumes.to_volume_grid`, and back, see `GridTransform`.

    Args:
        size: voxels along x, y and z.
        spacing: mm between them: one number or three.
        mask: ``"auto"``, ``"nonzero"``, ``"estimate"`` or ``"all"``, for volumes that come without a mask.
        center: ``"brain"`` or ``"image"``.
        percentile: of the brain that becomes 1.
        intensity: values that become -1 and 1; None takes them from the brain.
        bias_correction: correct the bias field by N4 first.
        template: file of a template to register to first; None does not register.
        registration: ``"rigid"`` or ``"affine"``.

    Raises:
        ValueError: if an option makes no sense.
        UnreadableImage: if the template cannot be read.
    """

    def __init__(
        self,
        size: Sequence[int] = (40, 48, 40),
        spacing: float | Sequence[float] = 4.0,
        mask: str = "auto",
        center: str = "brain",
        percentile: float = 99.5,
        intensity: tuple[float, float] | None = None,
        bias_correction: bool = False,
        template: str | Path | None = None,
        registration: str = "rigid",
    ) -> None:
        check_grid_options(size, spacing, center, percentile, registration)
        if mask not in MASK_METHODS:
            raise ValueError(
                f"mask={mask!r} is none of {', '.join(MASK_METHODS)}; files are named in a datalist's column 'mask'."
            )
        self.mask = mask
        self.options: dict[str, Any] = {
            "size": tuple(size),
            "spacing": spacing,
            "center": center,
            "percentile": percentile,
            "intensity": intensity,
            "bias_correction": bias_correction,
            "template": None if template is None else read_volume(template),
            "registration": registration,
        }

    def __call__(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> MetaTensor:
        """Resample (1, X, Y, Z) in any units to (1, *size) in [-1, 1].

        Args:
            image: the volume.
            mask: its brain, (1, X, Y, Z); None finds it.

        Raises:
            UnreadableImage: if no voxel of the grid is brain.
        """
        found = resolve_mask(image, self.mask) if mask is None else mask
        grid, record = to_volume_grid(image, mask=found, **self.options)
        if not bool((grid > -1).any()):
            name = str(getattr(image, "meta", {}).get("filename_or_obj", "the volume"))
            raise UnreadableImage(name, "holds less brain than a voxel of the grid", "Check the volume and its mask.")
        return self.remember(image, grid, record)

    def back(self, data: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
        """Resample (C, *size) to (C, X, Y, Z) of the volume."""
        return from_volume_grid(data, record)


class ToVolumeGridd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`ToVolumeGrid`.

    Args:
        keys: volumes to resample, which share their brain.
        mask_key: holds the brain mask, bool (1, X, Y, Z), where :class:`LoadVolumed` found one; then, in every case,
            the mask that was used.
        allow_missing_keys: whether a key may be missing.
        **options: of :class:`ToVolumeGrid`.
    """

    def __init__(
        self, keys: KeysCollection, mask_key: str = "mask", allow_missing_keys: bool = False, **options: Any
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.mask_key = mask_key
        self.resampler = ToVolumeGrid(**options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample the volumes of one case; other entries are kept."""
        resampled = dict(data)
        for key in self.key_iterator(resampled):
            if resampled.get(self.mask_key) is None:
                resampled[self.mask_key] = resolve_mask(resampled[key], self.resampler.mask)
            resampled[key] = self.resampler(resampled[key], resampled[self.mask_key])
        return resampled

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the entries back to the voxels of the volume."""
        native = dict(data)
        for key in self.key_iterator(native):
            native[key] = self.resampler.inverse(native[key])
        return native


ToVolumeGridD = ToVolumeGridDict = ToVolumeGridd


class NativeVolume(Transform):
    """Add what changed on the network's grid to the original volume, in its own units and voxels.

    The original keeps its resolution, so detail that the grid cannot hold never looks like a finding.

    Args:
        all_steps: bring every iterate of the trajectory back; by default only its ends, since a volume of the scanner
            is large.
    """

    def __init__(self, all_steps: bool = False) -> None:
        self.all_steps = all_steps

    def __call__(  # type: ignore[override]
        self, original: torch.Tensor, trajectory: torch.Tensor, record: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Bring a trajectory to the original's voxels.

        Args:
            original: (1, X, Y, Z) in its own units.
            trajectory: (L + 1, 1, *grid_size) in [-1, 1]: the input, then the iterates.
            record: from `medcf.data.volumes.to_volume_grid`.

        Returns:
            In the units of the original: ``original`` (X, Y, Z); ``counterfactual`` (X, Y, Z), original plus
            difference, nowhere below the original's smallest value or black; ``trajectory`` (2 or L + 1, X, Y, Z) from
            the one to the other; ``difference_units`` (X, Y, Z). ``difference`` (X, Y, Z) is signed, in fractions of
            the brain's range; ``window`` is that range in the units of the original.
        """
        volume = original.as_subclass(torch.Tensor).detach().cpu().float()[0]
        steps = trajectory.as_subclass(torch.Tensor).detach().cpu().float()[:, 0]
        chosen = steps if self.all_steps else steps[[0, -1]]
        low, high = (float(value) for value in record["intensity"])
        differences = from_volume_grid(chosen - chosen[:1], record) / 2
        in_units = differences * (high - low)
        # where nothing changed the original stays as it is, to the bit
        floor = min(low, float(volume.min()))
        images = torch.where(in_units == 0, volume, (volume + in_units).clamp(min=floor))
        return {
            "original": volume,
            "counterfactual": images[-1],
            "difference": differences[-1],
            "difference_units": in_units[-1],
            "trajectory": images,
            "window": (low, high),
        }


class NativeVolumed(Transform):
    """Dictionary version of `NativeVolume`, for the postprocessing of `CounterfactualEvaluator`.

    Args:
        image_key: the volume on the grid, which carries the grid's record.
        original_key: the volume as it was read; the result is written under ``native``.
        trajectory_key: the trajectory on the grid.
        mask_key: the brain mask on the original's voxels, written as ``native["mask"]`` (X, Y, Z).
        all_steps: bring every iterate of the trajectory back.
    """

    def __init__(
        self,
        image_key: str = "image",
        original_key: str = "original",
        trajectory_key: str = "trajectory",
        mask_key: str = "mask",
        all_steps: bool = False,
    ) -> None:
        self.keys = (image_key, original_key, trajectory_key)
        self.mask_key = mask_key
        self.transform = NativeVolume(all_steps)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``data`` with the volumes in the original's voxels under ``native``."""
        image, original, trajectory = (data[key] for key in self.keys)
        native = self.transform(original, trajectory, grid_record(image))
        mask = data.get(self.mask_key)
        if mask is not None:
            native["mask"] = mask.as_subclass(torch.Tensor)[0] > 0
        return {**data, "native": native}
