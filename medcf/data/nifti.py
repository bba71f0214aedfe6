# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI files with nibabel: the stored array, its own axes, and where it lies.

A file of one slice is a picture, of several a volume. Pictures become gray values in [0, 1]: uint8, and anything within
[0, 255] that exceeds 1, is divided by 255; values within [0, 1] stay; the rest is stretched from its minimum to its
maximum. An affine of a picture that is exactly the unit matrix is what a writer leaves that knows no geometry.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.image import Pixels
from medcf.runtime.errors import UnreadableImage

__all__ = ["check_nifti", "header_of_pair", "is_nifti", "read_nifti", "unit_in_mm"]

logger = logging.getLogger(__name__)

_MARKS = {b"n+1\0", b"n+2\0", b"ni1\0", b"ni2\0"}
_UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}


def is_nifti(head: bytes) -> bool:
    """Tell from the first 348 bytes, of version 1 or 2."""
    return head[344:348] in _MARKS or head[4:8] in _MARKS


def header_of_pair(path: Path) -> Path | None:
    """Return the header that belongs to the pixels of a .hdr/.img pair, None where ``path`` is no such file."""
    header = path.with_suffix(".hdr")
    if path.suffix.lower() != ".img" or not header.is_file():
        return None
    with header.open("rb") as stream:
        return header if is_nifti(stream.read(352)) else None


def unit_in_mm(header: Any) -> float:
    """Return the unit of a header's lengths in mm; an unknown one counts as mm."""
    return _UNITS.get(str(header.get_xyzt_units()[0]), 1.0) if hasattr(header, "get_xyzt_units") else 1.0


def check_nifti(path: Path) -> int:
    """Check from the header that the file holds one picture or one volume.

    Returns:
        Its number of spatial dimensions, 2 or 3.

    Raises:
        UnreadableImage: if it is damaged, empty, a time series, or a volume in colors.
    """
    return len(_axes(path, _load(path)))


def read_nifti(path: Path) -> Pixels:
    """Read a picture, gray or RGB, or a volume; further axes may have length 1.

    Values of a volume that are not finite, which some tools write outside of the brain, become 0. The affine is the
    header's sform if it has one, else its qform, else voxel sizes alone (with a warning).

    Raises:
        UnreadableImage: as :func:`check_nifti`, or if the pixels are damaged or the affine of a volume is singular.
    """
    image = _load(path)
    axes = _axes(path, image)
    try:
        stored = np.asarray(image.dataobj, dtype=None if len(axes) == 2 else np.float32)
        affine = np.eye(4) if image.affine is None else np.array(image.affine, dtype=np.float64)
        unit = unit_in_mm(image.header)
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error
    usable = bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) >= 1e-12
    values = stored.reshape([stored.shape[axis] for axis in axes])
    if len(axes) == 2:
        known = usable and not np.array_equal(affine, np.eye(4))
        affine[:3] *= unit
        third = 3 - sum(axes)
        array, value_range = _gray(values)
        return Pixels(array, affine[:, [*axes, third, 3]] if known else None, "nifti", value_range)
    if not usable:
        remedy = "Correct its sform or qform, or export it again."
        raise UnreadableImage(path, "says nothing usable about where its voxels lie", remedy)
    affine[:3] *= unit
    _warn(path, image)
    odd = ~np.isfinite(values)
    if odd.any():
        logger.warning("%s: %d voxels are not finite and count as 0", path.name, int(odd.sum()))
        values = np.where(odd, np.float32(0), values)
    return Pixels(values[None], affine, "nifti", (float(values.min()), float(values.max())))


def _load(path: Path) -> Any:
    import nibabel as nib

    try:
        return nib.load(path)
    except Exception as error:
        raise UnreadableImage(path, f"is a damaged NIfTI file ({type(error).__name__})", "Export it again.") from error


def _axes(path: Path, image: Any) -> list[int]:
    """Return the spatial axes of the array: two of a picture, three of a volume."""
    shape = tuple(int(n) for n in image.shape)
    shown = " x ".join(map(str, shape))
    long = [axis for axis, length in enumerate(shape) if length > 1]
    if any(axis > 2 for axis in long):
        reason = f"has the wrong dimension: a series of images ({shown})"
        raise UnreadableImage(path, reason, "Save one of its images, or their mean, in a file of its own.")
    if len(long) < 2 or 0 in shape:
        raise UnreadableImage(path, f"holds no image (its size is {shown})", "Export it again.")
    kind = image.get_data_dtype()
    if kind.kind == "c" or (kind.fields is not None and len(long) == 3):
        raise UnreadableImage(path, f"holds {'colors' if kind.fields else 'complex values'}", "Save gray values.")
    return long


def _gray(array: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Scale a picture (X, Y) to (C, X, Y) in [0, 1]; return the values that became 0 and 1, too."""
    if array.dtype.names is not None:  # NIfTI's RGB24 and RGBA32
        return np.stack([array[name] for name in ("R", "G", "B")]).astype(np.float32) / 255.0, (0.0, 255.0)
    values = np.nan_to_num(array.astype(np.float32), posinf=0.0, neginf=0.0)[None]
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255:
        top = 255.0 if array.dtype == np.uint8 or high > 1 else 1.0
        return values / top, (0.0, top)
    return (values - low) / max(high - low, 1e-12), (low, high)


def _warn(path: Path, image: Any) -> None:
    """Say where the header leaves doubt about left and right."""
    header = image.header
    if not hasattr(header, "get_sform"):
        return
    sform, qform = header.get_sform(coded=True), header.get_qform(coded=True)
    if not sform[1] and not qform[1]:
        logger.warning("%s: the header names no orientation; left and right are a guess", path.name)
    elif sform[1] and qform[1] and not np.allclose(sform[0], qform[0], atol=0.1):
        logger.warning("%s: sform and qform of the header differ; the sform is used", path.name)
