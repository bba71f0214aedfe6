# SPDX-License-Identifier: Apache-2.0
"""Reads a volume: a NIfTI file, or the DICOM files of one series."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys

from medcf.data.readers import sniff
from medcf.data.volumes.brain_mask import brain_mask
from medcf.data.volumes.dicom import list_dicom_files, read_dicom_volume
from medcf.data.volumes.nifti import header_of_pair, read_nifti_volume
from medcf.runtime.errors import UnreadableImage

__all__ = ["read_mask", "read_volume", "resolve_mask"]

logger = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 1.0, 3000.0  # mm, the longest edge of a volume

Source = str | PathLike[str] | Sequence[str | PathLike[str]]


def read_volume(path: Source) -> MetaTensor:
    """Read a volume in its own units and voxel order.

    The array's axes are those of the file (NIfTI) or column, row and slice (DICOM, as ITK has them), so whatever is
    written with the same affine lies on the input voxel for voxel. Meta data, which can be collated: ``affine`` and
    ``original_affine`` (indices to RAS+ mm), ``spacing_mm`` (along the three axes), ``source_format`` (``"nifti"`` or
    ``"dicom"``), ``modality`` (DICOM's), ``value_range`` (smallest and largest value), ``original_shape``,
    ``filename_or_obj`` (the file; of a series the first slice).

    Args:
        path: a NIfTI file, a DICOM file with several frames, a folder that holds one DICOM series, or its files.

    Returns:
        float32 (1, X, Y, Z); DICOM's after the rescaling to HU or whatever its units are.

    Raises:
        UnreadableImage: if a file is missing, damaged or no part of a volume, or if the slices make up no volume.
    """
    if isinstance(path, str | PathLike):
        files = list_dicom_files(Path(path)) if Path(path).is_dir() else [Path(path)]
    else:
        files = [Path(part) for part in path]
        if not files:
            raise ValueError("path is an empty list: name the files of one series")
    files = [header_of_pair(file) or file for file in files]
    kind = sniff(files[0])
    if kind == "nifti" and len(files) == 1:
        values, affine = read_nifti_volume(files[0])
        first, modality = files[0], ""
    elif kind == "dicom":
        values, affine, first, modality = read_dicom_volume(files)
    else:
        reason = "is one of several files that are no DICOM series" if kind == "nifti" else "is no NIfTI or DICOM file"
        raise UnreadableImage(files[0], reason, "Give a NIfTI file, or a folder with one DICOM series.")
    longest = float((np.linalg.norm(affine[:3, :3], axis=0) * values.shape).max())
    if not _SHORTEST <= longest <= _LONGEST:
        reason = f"is {longest:.3g} mm long by its header, no part of a body"
        raise UnreadableImage(first, reason, "Correct the voxel size or its unit in the header.")
    placed = torch.from_numpy(affine)
    meta: dict[str, Any] = {
        str(MetaKeys.ORIGINAL_AFFINE): placed.clone(),
        str(MetaKeys.SPACE): str(SpaceKeys.RAS),
        str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0,
        "filename_or_obj": str(first),
        "source_format": kind,
        "modality": modality,
        "original_shape": tuple(int(n) for n in values.shape),
        "spacing_mm": tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)),
        "value_range": (float(values.min()), float(values.max())),
    }
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values))[None], affine=placed, meta=meta)


def read_mask(path: Source, image: MetaTensor) -> torch.Tensor:
    """Read a brain mask that lies on the voxels of ``image``.

    Returns:
        bool (1, X, Y, Z): every voxel of the mask that is above 0.

    Raises:
        UnreadableImage: as :func:`read_volume`, or if the mask is empty or lies on other voxels.
    """
    mask = read_volume(path)
    first = Path(mask.meta["filename_or_obj"])
    if mask.shape != image.shape or not np.allclose(mask.affine, image.affine, atol=0.05):
        remedy = "Resample it onto the volume, nearest neighbor."
        raise UnreadableImage(first, "is a mask on other voxels than its volume", remedy)
    inside = mask.as_tensor() > 0
    if not inside.any():
        raise UnreadableImage(first, "is an empty mask", "Give one in which the brain is 1.")
    labels = torch.unique(mask.as_tensor()[inside])
    if len(labels) > 1:
        logger.warning("%s holds %d labels; all of them count as brain", first.name, len(labels))
    return inside


def resolve_mask(image: MetaTensor | torch.Tensor, method: str = "auto") -> torch.Tensor:
    """Find the brain, see :func:`medcf.data.volumes.brain_mask`; what fails names the file.

    Raises:
        UnreadableImage: if the volume has no contrast.
    """
    name = Path(str(getattr(image, "meta", {}).get("filename_or_obj", "the volume"))).name
    try:
        inside, used = brain_mask(image, method)
    except ValueError as error:
        raise UnreadableImage(name, f"has no brain that can be found ({error})", "Give a volume of a brain.") from error
    logger.debug("%s: brain mask by %r, %d voxels", name, used, int(inside.sum()))
    return inside
