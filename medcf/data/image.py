# SPDX-License-Identifier: Apache-2.0
"""An image in memory: channels first, columns before rows, and a 4 x 4 affine that says where it lies.

A picture is a volume of one slice. Its columns go to the left of the patient and its rows to the back, as ITK places a
2D image; one without geometry (the affine is the unit matrix and nothing names a space, as MONAI's reader of PNG files
gives it) is taken so, its pixel spacing unknown; on the network's grid its ``space`` is empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

__all__ = [
    "LUMINANCE_WEIGHTS",
    "Pixels",
    "channels_first",
    "display_range",
    "geometry",
    "get_spacing",
    "meta_of",
    "picture_affine",
    "to_luminance",
    "voxel_sizes",
]

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)
"""Red, green and blue weights of ITU-R BT.601 luma: the Y of DICOM's YBR_FULL and of JPEG."""


def picture_affine(spacing: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Affine from (column, row, slice) indices to RAS+ mm of a picture without a position in the patient.

    Args:
        spacing: mm between columns and between rows; None counts as 1.
    """
    column, row = spacing or (1.0, 1.0)
    return np.diag([-column, -row, 1.0, 1.0])


def geometry(image: torch.Tensor) -> tuple[NDArray[np.float64], bool]:
    """Return where an image lies, and whether its spacing is known.

    Args:
        image: (C, X, Y) or (C, X, Y, Z), from :func:`medcf.read` or any of MONAI's readers.

    Returns:
        Affine (4, 4) from indices to RAS+ mm; whether it is the file's own.
    """
    affine = np.asarray(image.affine, dtype=np.float64) if isinstance(image, MetaTensor) else np.eye(4)
    if affine.shape == (3, 3):  # MONAI's affine of an image in two dimensions
        affine = np.block([[affine[:2, :2], np.zeros((2, 1)), affine[:2, 2:]], [0, 0, 1, 0], [0, 0, 0, 1]])
    unit = np.array_equal(affine, np.eye(4))
    if image.ndim == 3 and unit:
        return picture_affine(), False
    return affine, bool(getattr(image, "meta", {}).get(str(MetaKeys.SPACE), not unit))


def get_spacing(image: torch.Tensor) -> tuple[float, ...] | None:
    """Millimeters between neighbors along each spatial axis of an image (C, *spatial), None if unknown."""
    affine, known = geometry(image)
    return voxel_sizes(affine)[: image.ndim - 1] if known else None


def voxel_sizes(affine: NDArray[np.floating]) -> tuple[float, ...]:
    """Millimeters between neighbors along the three axes of an affine (4, 4)."""
    return tuple(float(mm) for mm in np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


def channels_first(image: torch.Tensor) -> torch.Tensor:
    """Put the channel of an image that a loader left last, or out, where it belongs, as its meta data tell."""
    spatial = tuple(int(n) for n in getattr(image, "meta", {}).get(str(MetaKeys.SPATIAL_SHAPE), ()))
    if image.ndim == 2 or (spatial and tuple(image.shape) == spatial):
        return image[None]
    if spatial and tuple(image.shape[1:]) != spatial and tuple(image.shape[:-1]) == spatial:
        return image.movedim(-1, 0)
    return image


def display_range(picture: torch.Tensor) -> tuple[float, float]:
    """Values of a picture that are black and white: 0 and 1, 0 and 255, or its own ends beyond these."""
    low, high = (float(value) for value in picture.as_subclass(torch.Tensor).float().aminmax())
    if low >= -1e-6 and high <= 255:
        return 0.0, 1.0 if high <= 1 + 1e-6 else 255.0
    return low, max(high, low + 1e-6)


def meta_of(image: torch.Tensor | None, *without: str) -> dict[str, Any]:
    """Copy an image's meta data without its affine and some entries; MONAI's loaders use members of an Enum as keys."""
    meta = getattr(image, "meta", {})
    return {str(key): value for key, value in meta.items() if str(key) not in ("affine", *without)}


def to_luminance(image: torch.Tensor) -> torch.Tensor:
    """Collapse color to luminance (ITU-R BT.601); a grayscale image is returned as it is.

    Args:
        image: (C, *spatial) with C = 1, 3, or 4 (the last, opacity, is left out).

    Returns:
        (1, *spatial), of the same kind (a MetaTensor keeps its meta).

    Raises:
        ValueError: if there is another number of channels.
    """
    if image.shape[0] == 1:
        return image
    if image.shape[0] not in (3, 4):
        raise ValueError(f"image must have 1 or 3 channels first, got shape {tuple(image.shape)}")
    weights = torch.tensor(LUMINANCE_WEIGHTS, dtype=image.dtype, device=image.device)
    return (image[:3] * weights.view(3, *[1] * (image.ndim - 1))).sum(dim=0, keepdim=True)


@dataclass(frozen=True)
class Pixels:
    """What every reader hands over, whatever the format was.

    Attributes:
        array: float32 (C, X, Y) in [0, 1], bright is white whatever the file's convention; or a volume (1, X, Y, Z) in
            its own units.
        affine: indices to RAS+ mm; None where the file does not say.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        value_range: of a picture, the file's intensities that became 0 and 1 (the first is the larger one if white was
            low), NaN where a lookup table stands between; of a volume, its smallest and largest value.
        region: first column, first row, end column, end row of the picture proper (an ultrasound region); None for all.
        frame: index of this frame.
        num_frames: number of frames of the file.
        modality: DICOM's modality, empty for other formats.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64] | None
    source_format: str
    value_range: tuple[float, float] = (math.nan, math.nan)
    region: tuple[int, int, int, int] | None = None
    frame: int = 0
    num_frames: int = 1
    modality: str = ""

    def describe(self) -> dict[str, Any]:
        """Return the meta data, plain values that MONAI's collate functions accept."""
        known = self.affine is not None
        affine = np.eye(4) if self.affine is None else self.affine
        meta: dict[str, Any] = {
            str(MetaKeys.AFFINE): affine,
            str(MetaKeys.ORIGINAL_AFFINE): affine.copy(),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): 0,
            str(MetaKeys.SPATIAL_SHAPE): np.array(self.array.shape[1:]),
            "source_format": self.source_format,
            "modality": self.modality,
            "frame": self.frame,
            "num_frames": self.num_frames,
            "value_range": self.value_range,
        }
        if known:
            meta[str(MetaKeys.SPACE)] = str(SpaceKeys.RAS)
        if self.region is not None:
            meta["region"] = self.region
        return meta
