# SPDX-License-Identifier: Apache-2.0
"""What every reader hands over, whatever the format was, and how it becomes a MetaTensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

__all__ = ["LUMINANCE_WEIGHTS", "Pixels", "get_spacing", "planar_affine", "to_luminance"]

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)
"""Red, green and blue weights of ITU-R BT.601 luma: the Y of DICOM's YBR_FULL and of JPEG."""


def planar_affine(spacing: tuple[float, float] | None) -> NDArray[np.float64]:
    """Affine from (row, column, slice) indices to RAS+ millimetres of a plane without a position in the patient.

    Columns run along LPS +x and rows along LPS +y, as ITK places a 2D image; an unknown spacing counts as 1.

    Args:
        spacing: millimetres between rows and between columns, or None.
    """
    row, column = spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:2, :2] = [[0.0, -column], [-row, 0.0]]
    return affine


def to_luminance(image: torch.Tensor) -> torch.Tensor:
    """Collapse colour to luminance (ITU-R BT.601); a greyscale image is returned as it is.

    Args:
        image: (C, H, W) with C = 1 or 3.

    Returns:
        (1, H, W), of the same kind (a MetaTensor keeps its meta).

    Raises:
        ValueError: if there are neither one nor three channels.
    """
    if image.shape[0] == 1:
        return image
    if image.shape[0] != 3:
        raise ValueError(f"image must have 1 or 3 channels first, got shape {tuple(image.shape)}")
    weights = torch.tensor(LUMINANCE_WEIGHTS, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * weights).sum(dim=0, keepdim=True)


def get_spacing(image: torch.Tensor) -> tuple[float, float] | None:
    """Millimetres between rows and between columns of an image from :func:`medcf.data.read_study`, None if unknown."""
    values = getattr(image, "meta", {}).get("spacing_mm")
    if values is None:
        return None
    row, column = (float(v) for v in values)
    return (row, column) if math.isfinite(row) and math.isfinite(column) else None


@dataclass(frozen=True)
class Pixels:
    """One decoded frame.

    Attributes:
        array: float32, (H, W) or (H, W, 3), in [0, 1]; bright is white whatever the file's convention.
        spacing: millimetres between rows and between columns, None if the file does not say.
        affine: (row, column, slice) indices to RAS+ mm; None for a plane without a position in the patient.
        value_range: the file's intensities that became 0 and 1 (the first is the larger one if white was low);
            NaN where a lookup table stands between.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        photometric: DICOM's photometric interpretation, or PIL's mode, or NIfTI's data type.
        region: first row, first column, end row, end column of the picture proper (an ultrasound region); None for all.
        frame: index of this frame.
        num_frames: number of frames of the file.
        modality: DICOM's modality, empty for other formats.
    """

    array: NDArray[np.float32]
    spacing: tuple[float, float] | None
    source_format: str
    photometric: str
    affine: NDArray[np.float64] | None = None
    value_range: tuple[float, float] = (math.nan, math.nan)
    region: tuple[int, int, int, int] | None = None
    frame: int = 0
    num_frames: int = 1
    modality: str = ""

    def to_tensor(self, path: str) -> MetaTensor:
        """Make the (C, H, W) float32 tensor; every meta value is one that MONAI's collate functions accept."""
        array = self.array[None] if self.array.ndim == 2 else np.moveaxis(self.array, -1, 0)
        height, width = self.array.shape[:2]
        affine = torch.as_tensor(planar_affine(self.spacing) if self.affine is None else self.affine)
        meta: dict[str, Any] = {
            str(MetaKeys.ORIGINAL_AFFINE): affine.clone(),
            str(MetaKeys.SPACE): str(SpaceKeys.RAS),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0,
            "filename_or_obj": path,
            "source_format": self.source_format,
            "photometric": self.photometric,
            "modality": self.modality,
            "frame": self.frame,
            "num_frames": self.num_frames,
            "original_shape": (height, width),
            # NaN stands for "unknown": None could not be collated into a batch
            "spacing_mm": self.spacing or (math.nan, math.nan),
            "region": self.region or (0, 0, height, width),
            "value_range": self.value_range,
        }
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), affine=affine, meta=meta)
