# SPDX-License-Identifier: Apache-2.0
"""An image in memory: channels first, columns before rows, and a 4 x 4 affine for its position.

A picture is a volume of one slice. Its columns run to the patient's left and its rows to the back, as ITK places a 2D
image. A picture without geometry (the affine is the unit matrix and nothing names a space, as from MONAI's PNG reader)
is treated the same way, with unknown pixel spacing; on the network's grid its ``space`` is empty.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import IO, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from medcf.runtime.errors import UnreadableImage

__all__ = [
    "LUMINANCE_WEIGHTS",
    "Limits",
    "Pixels",
    "channels_first",
    "check_extent",
    "digest",
    "display_range",
    "geometry",
    "get_spacing",
    "inflated_size",
    "meta_of",
    "picture_affine",
    "to_luminance",
    "to_unit_range",
    "voxel_sizes",
]

_FINEST = 1e-4  # mm, finer than any scanner's voxels
_SHORTEST, _LONGEST = 1.0, 3000.0  # mm, limits of an image's longest edge

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)
"""Red, green and blue weights of ITU-R BT.601 luma: the Y of DICOM's YBR_FULL and of JPEG."""


def picture_affine(spacing: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Return the affine from (column, row, slice) indices to RAS+ mm for a picture without a position in the patient.

    Args:
        spacing: mm between columns and between rows; None counts as 1.
    """
    column, row = spacing or (1.0, 1.0)
    return np.diag([-column, -row, 1.0, 1.0])


def geometry(image: torch.Tensor) -> tuple[NDArray[np.float64], bool]:
    """Return the position of an image, and whether its spacing is known.

    Args:
        image: (C, X, Y) or (C, X, Y, Z), from :func:`medcf.read` or any of MONAI's readers.

    Returns:
        Affine (4, 4) from indices to RAS+ mm; whether it comes from the file.
    """
    affine = square_affine(image.affine) if isinstance(image, MetaTensor) else np.eye(4)
    unit = np.array_equal(affine, np.eye(4))
    if image.ndim == 3 and unit:
        return picture_affine(), False
    return affine, bool(getattr(image, "meta", {}).get(str(MetaKeys.SPACE), not unit))


def square_affine(affine: Any) -> NDArray[np.float64]:
    """Return an affine as (4, 4); MONAI's for a 2D image is (3, 3)."""
    given = np.asarray(affine, dtype=np.float64)
    if given.shape == (4, 4):
        return given
    return np.block([[given[:2, :2], np.zeros((2, 1)), given[:2, 2:]], [0, 0, 1, 0], [0, 0, 0, 1]])


def get_spacing(image: torch.Tensor) -> tuple[float, ...] | None:
    """Return the mm between neighbors along each spatial axis of an image (C, *spatial); None if unknown."""
    affine, known = geometry(image)
    return voxel_sizes(affine)[: image.ndim - 1] if known else None


def voxel_sizes(affine: NDArray[np.floating]) -> tuple[float, ...]:
    """Return the mm between neighbors along the three axes of an affine (4, 4)."""
    return tuple(float(mm) for mm in np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


def channels_first(image: torch.Tensor) -> torch.Tensor:
    """Move or add the channel axis of an image that a loader left last or omitted, based on its metadata."""
    spatial = tuple(int(n) for n in getattr(image, "meta", {}).get(str(MetaKeys.SPATIAL_SHAPE), ()))
    if image.ndim == 2 or (spatial and tuple(image.shape) == spatial):
        return image[None]
    if spatial and tuple(image.shape[1:]) != spatial and tuple(image.shape[:-1]) == spatial:
        return image.movedim(-1, 0)
    return image


def digest(image: NDArray[np.generic]) -> str:
    """Return the SHA-256 of an array's values and shape. It seeds the noise, so file names do not matter."""
    array = np.ascontiguousarray(image)
    return hashlib.sha256(str(array.shape).encode() + array.view(np.uint8).reshape(-1).data).hexdigest()


def display_range(picture: torch.Tensor) -> tuple[float, float]:
    """Return the black and white values of a picture: 0 and 1, 0 and 255, or its own range if it exceeds these."""
    low, high = (float(value) for value in picture.as_subclass(torch.Tensor).float().aminmax())
    if low >= -1e-6 and high <= 255:
        return 0.0, 1.0 if high <= 1 + 1e-6 else 255.0
    return low, max(high, low + 1e-6)


def to_unit_range(values: NDArray[np.generic]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Scale the values of a picture to [0, 1].

    Unsigned integers are divided by the largest number of 8, 10, 12, 14, 16 or 32 bits, whichever is the first to fit,
    because detectors use fewer bits than the file has, without a scale. Other types are kept if they are within [0, 1],
    divided by 255 if they are within [0, 255], and otherwise stretched from minimum to maximum.

    Args:
        values: any type; non-finite values count as 0.

    Returns:
        float32 of the same shape; the values that map to 0 and 1.
    """
    numbers = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if values.dtype.kind in "ub":
        bits = next(bits for bits in (8, 10, 12, 14, 16, 32, 64) if int(values.max()) < 2**bits)
        low, high = 0.0, 1.0 if values.dtype.kind == "b" else float(2**bits - 1)
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0 if high > 1 else 1.0
    return np.clip((numbers - low) / max(high - low, 1e-12), 0, 1), (low, high)


def meta_of(image: torch.Tensor | None, *without: str) -> dict[str, Any]:
    """Copy an image's metadata without its affine and the named entries; MONAI's loaders use Enum members as keys."""
    meta = getattr(image, "meta", {})
    return {str(key): value for key, value in meta.items() if str(key) not in ("affine", *without)}


def to_luminance(image: torch.Tensor) -> torch.Tensor:
    """Convert color to luminance (ITU-R BT.601); a grayscale image is returned unchanged.

    Args:
        image: (C, *spatial) with C = 1, 3, or 4 (the fourth, opacity, is ignored).

    Returns:
        (1, *spatial), of the same type (a MetaTensor keeps its metadata).

    Raises:
        ValueError: if the number of channels is different.
    """
    if image.shape[0] == 1:
        return image
    if image.shape[0] not in (3, 4):
        raise ValueError(f"image must have 1 or 3 channels first, got shape {tuple(image.shape)}")
    weights = torch.tensor(LUMINANCE_WEIGHTS, dtype=image.dtype, device=image.device)
    return (image[:3] * weights.view(3, *[1] * (image.ndim - 1))).sum(dim=0, keepdim=True)


@dataclass(frozen=True)
class Pixels:
    """What every reader returns, whatever the format.

    Attributes:
        array: float32 (C, X, Y) in [0, 1], where white is bright whatever the file's convention; or a volume (1, X, Y,
            Z) in its own units.
        affine: indices to RAS+ mm; None if the file does not state it.
        source_format: ``"dicom"``, ``"nifti"``, ``"itk"`` or ``"raster"``.
        value_range: for a picture, the stored values that map to 0 and 1 (the first is larger if low values are
            white), NaN if a lookup table applies; for a volume, its smallest and largest values.
        region: first column, first row, end column, end row of the actual picture (an ultrasound region); None for all.
        frame: index of this frame.
        num_frames: number of frames in the file.
        modality: DICOM modality, empty for other formats.
        synthetic: whether the file says that it is synthetic, or was made by medcf.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64] | None
    source_format: str
    value_range: tuple[float, float] = (math.nan, math.nan)
    region: tuple[int, int, int, int] | None = None
    frame: int = 0
    num_frames: int = 1
    modality: str = ""
    synthetic: bool = False

    @classmethod
    def picture(cls, array: NDArray[np.float32], spacing: tuple[float, float] | None, **known: Any) -> Pixels:
        """Create pixels from a picture as it appears on a screen.

        Args:
            array: (H, W) or (H, W, C) in [0, 1].
            spacing: mm between rows and between columns; None if the file does not state it.
            known: values of other attributes.
        """
        turned = array[None].swapaxes(1, 2) if array.ndim == 2 else array.transpose(2, 1, 0)
        return cls(turned, None if spacing is None else picture_affine(spacing[::-1]), **known)

    def describe(self) -> dict[str, Any]:
        """Return the metadata as plain values that MONAI's collate functions accept."""
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
            "synthetic": self.synthetic,
        }
        if known:
            meta[str(MetaKeys.SPACE)] = str(SpaceKeys.RAS)
        if self.region is not None:
            meta["region"] = self.region
        return meta


@dataclass(frozen=True)
class Limits:
    """Largest number of pixels in a picture, and of voxels in a volume, that will be read.

    Reading and preparing a volume takes up to 14 bytes per voxel.
    """

    pixels: float = 4e7
    voxels: float = 1.5e8

    def check(self, path: str | PathLike[str], size: Sequence[int]) -> None:
        """Refuse a file whose stated size exceeds the limit.

        Args:
            path: the file.
            size: two numbers for a picture, three for a volume.

        Raises:
            UnreadableImage: if it does; names the stated size and the option that raises the limit.
        """
        kind, limit = ("pixels", self.pixels) if len(size) == 2 else ("voxels", self.voxels)
        if math.prod(size) > limit:
            claim = " x ".join(map(str, size))
            reason = f"claims {claim} {kind}, which exceeds the limit of {limit:.0f}"
            raise UnreadableImage(path, reason, f"If that is correct, raise the limit: --max_{kind} {math.prod(size)}")


def inflated_size(stream: IO[bytes], most: int, wbits: int = zlib.MAX_WBITS) -> tuple[int, bool]:
    """Measure zlib data without holding what they inflate to.

    Args:
        stream: at the start of the data.
        most: number of bytes beyond which measuring stops.
        wbits: as for `zlib.decompressobj`; negative for data without a header.

    Returns:
        The size in bytes, more than ``most`` if measuring stopped; whether the data are complete.

    Raises:
        zlib.error: if they are damaged.
    """
    inflate, length = zlib.decompressobj(wbits), 0
    while length <= most and (packed := inflate.unconsumed_tail or stream.read(2**16)):
        length += len(inflate.decompress(packed, 2**20))
    return length, inflate.eof


def check_extent(path: str | PathLike[str], affine: NDArray[np.floating], size: Sequence[int]) -> None:
    """Refuse an image whose size in mm, by its header, exceeds that of any body part.

    Args:
        path: the file.
        affine: (4, 4), indices to mm.
        size: number of elements along the axes of the affine; a single slice has no length.

    Raises:
        UnreadableImage: if the size is implausible.
    """
    longest = max(mm * n for mm, n in zip(voxel_sizes(affine), size, strict=False) if n > 1)
    if min(voxel_sizes(affine)) < _FINEST:
        reason = f"has pixels or voxels of {min(voxel_sizes(affine)):.3g} mm according to its header"
        raise UnreadableImage(path, reason, "Correct the pixel or voxel size, or its unit, in the header.")
    if not _SHORTEST <= longest <= _LONGEST:
        reason = f"is {longest:.3g} mm long according to its header, which is not plausible for any body part"
        raise UnreadableImage(path, reason, "Correct the pixel or voxel size, or its unit, in the header.")
