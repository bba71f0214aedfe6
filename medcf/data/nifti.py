# SPDX-License-Identifier: Apache-2.0
"""Reads NIfTI files with nibabel: the stored array, its own axes, and its position.

A file with one slice is a picture, with several a volume. Pictures become gray values in [0, 1]: uint8, and anything
within [0, 255] that exceeds 1, is divided by 255; values within [0, 1] stay; everything else is stretched from minimum
to maximum. Writers without geometry leave exactly the unit matrix as the affine of a picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.image import Pixels, check_extent, to_unit_range
from medcf.runtime.errors import UnreadableImage

__all__ = ["check_nifti", "header_of_pair", "is_nifti", "open_nifti", "read_nifti", "unit_in_mm"]

logger = logging.getLogger(__name__)

_MARKS = {b"n+1\0", b"n+2\0", b"ni1\0", b"ni2\0"}
_FLAT = 1e-4  # volume spanned by three unit vectors, below which they count as coplanar
_ROUNDING = 1e-4  # tolerance for the squared length of a quaternion
_HIGHEST_PADDING, _PADDING_GAP, _LEAST_PADDED = -1500.0, 400.0, 1e-3  # HU, HU, fraction of the voxels
_UNITS = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}


def is_nifti(head: bytes) -> bool:
    """Recognize NIfTI version 1 or 2 by the first 348 bytes."""
    return head[344:348] in _MARKS or head[4:8] in _MARKS


def header_of_pair(path: Path) -> Path | None:
    """Return the header file for the pixels of a .hdr/.img pair; None if ``path`` is not such a file."""
    header = path.with_suffix(".hdr")
    try:
        if path.suffix.lower() != ".img" or not header.is_file():
            return None
        with header.open("rb") as stream:
            return header if is_nifti(stream.read(352)) else None
    except OSError:
        return None


def unit_in_mm(header: Any) -> float:
    """Return the header's length unit in mm; an unknown unit counts as mm."""
    return _UNITS.get(str(header.get_xyzt_units()[0]), 1.0) if hasattr(header, "get_xyzt_units") else 1.0


def check_nifti(path: Path) -> tuple[int, ...]:
    """Check in the header that the file holds one picture or one volume.

    Returns:
        Its size: two or three numbers.

    Raises:
        UnreadableImage: if it is damaged, empty, a time series, a color volume, or implausibly large.
    """
    image = open_nifti(path)
    size = tuple(int(image.shape[axis]) for axis in _axes(path, image))
    affine = _affine(image)
    if affine is not None:
        check_extent(path, affine, image.shape[:3])
    return size


def read_nifti(path: Path) -> Pixels:
    """Read a picture, gray or RGB, or a volume; other axes must have length 1.

    Non-finite values in a volume, which some tools write outside the brain, become 0; padding outside the field of view
    of a CT becomes the smallest value inside it. The affine is the header's sform if valid, otherwise its qform,
    otherwise voxel sizes only (with a warning).

    Raises:
        UnreadableImage: like :func:`check_nifti`, or if the pixels are damaged or a volume's affine is singular.
    """
    image = open_nifti(path)
    axes = _axes(path, image)
    try:
        stored = np.asarray(image.dataobj, dtype=None if len(axes) == 2 else np.float32)
        affine = _affine(image)
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error
    values = stored.reshape([stored.shape[axis] for axis in axes])
    odd = np.zeros(1, bool) if values.dtype.names is not None else ~np.isfinite(values)
    if odd.all():
        raise UnreadableImage(path, "holds no finite number", "Export it again.")
    if odd.any():
        logger.warning("%s: %d voxels are not finite and are set to 0", path.name, int(odd.sum()))
    if len(axes) == 2:
        third = 3 - sum(axes)
        array, value_range = _gray(values)
        place = None if affine is None else affine[:, [*axes, third, 3]]
        return Pixels(array, place, "nifti", value_range, synthetic=_says_synthetic(image))
    if affine is None:
        remedy = "Correct its sform or qform, or export it again."
        raise UnreadableImage(path, "has no usable geometry for its voxels", remedy)
    _warn(path, image)
    values = np.where(odd, np.float32(0), values) if odd.any() else values
    values = _without_padding(path, values)
    ends = (float(values.min()), float(values.max()))
    return Pixels(values[None], affine, "nifti", ends, synthetic=_says_synthetic(image))


def _says_synthetic(image: Any) -> bool:
    """Tell whether the header's description says that the image was generated, as that of medcf's own does."""
    description = bytes(np.asarray(image.header["descrip"]))
    return description.startswith(b"SYNTHETIC") and b"phantom" not in description


def open_nifti(path: Path) -> Any:
    """Open a nibabel image and leave its pixels in the file.

    Raises:
        UnreadableImage: if the header is damaged.
    """
    import nibabel as nib

    try:
        try:
            image: Any = nib.load(path)
        except ValueError:  # single precision rounded a quaternion slightly beyond length 1
            kinds = (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair)
            kind = next(kind for kind in kinds if kind.path_maybe_image(path)[0])
            header = type("Tolerant", (kind.header_class,), {"quaternion_threshold": _ROUNDING})
            tolerant: Any = type(kind.__name__, (kind,), {"header_class": header})
            image = tolerant.from_filename(path)
        image.header.quaternion_threshold = _ROUNDING
        return image
    except Exception as error:
        raise UnreadableImage(path, f"is a damaged NIfTI file ({type(error).__name__})", "Export it again.") from error


def _affine(image: Any) -> NDArray[np.float64] | None:
    """Return the affine in mm: the sform if valid, otherwise the qform, otherwise voxel sizes; None if there is none.

    Writers without geometry leave the unit matrix as the affine of a picture.
    """
    header = image.header
    candidates: list[Callable[[], Any]] = [header.get_base_affine]
    if hasattr(header, "get_sform"):
        forms = (header.get_sform, header.get_qform)
        candidates = [partial(lambda form: form(coded=True)[0], form) for form in forms] + candidates
    for candidate in candidates:
        try:
            affine = np.array(candidate(), dtype=np.float64)
        except (TypeError, ValueError):  # not coded, or not a rotation
            continue
        if affine.shape == (4, 4) and np.isfinite(affine).all() and _is_regular(affine[:3, :3]):
            if np.array_equal(affine, np.eye(4)) and min(image.shape[:3]) == 1:
                return None
            affine[:3] *= unit_in_mm(header)
            return affine
    return None


def _is_regular(matrix: NDArray[np.float64]) -> bool:
    """Tell whether the axes span three dimensions, whatever their unit."""
    lengths = np.linalg.norm(matrix, axis=0)
    return bool(lengths.min() > 0) and abs(np.linalg.det(matrix / lengths)) >= _FLAT


def _without_padding(path: Path, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace CT padding outside the field of view, such as -3024 or -32768, by the smallest value inside it."""
    lowest = float(values.min())
    if lowest > _HIGHEST_PADDING:
        return values
    inside = values > lowest
    if not inside.any() or (~inside).mean() < _LEAST_PADDED:
        return values
    darkest = float(values[inside].min())
    if darkest - lowest < _PADDING_GAP:
        return values
    logger.info("%s: voxels with value %g are padding and are set to %g", path.name, lowest, darkest)
    return np.where(inside, values, np.float32(darkest))


def _axes(path: Path, image: Any) -> list[int]:
    """Return the spatial axes of the array: two for a picture, three for a volume."""
    shape = tuple(int(n) for n in image.shape)
    shown = " x ".join(map(str, shape))
    long = [axis for axis, length in enumerate(shape) if length > 1]
    if any(axis > 2 for axis in long):
        reason = f"is a series of images ({shown})"
        raise UnreadableImage(path, reason, "Save one of its images, or their mean, as a separate file.")
    if len(long) < 2 or 0 in shape:
        raise UnreadableImage(path, f"holds no image (its size is {shown})", "Export it again.")
    kind = image.get_data_dtype()
    if kind.kind == "c" or (kind.fields is not None and len(long) == 3):
        raise UnreadableImage(path, f"holds {'colors' if kind.fields else 'complex values'}", "Save gray values.")
    return long


def _gray(array: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Scale a picture (X, Y) to (C, X, Y) in [0, 1]; also return the values that map to 0 and 1."""
    if array.dtype.names is not None:  # RGB24 or RGBA32
        return np.stack([array[name] for name in ("R", "G", "B")]).astype(np.float32) / 255.0, (0.0, 255.0)
    return to_unit_range((array if array.dtype == np.uint8 else array.astype(np.float32))[None])


def _warn(path: Path, image: Any) -> None:
    """Warn if the header is ambiguous about left and right."""
    header = image.header
    if not hasattr(header, "get_sform"):
        return
    if not header["sform_code"] and not header["qform_code"]:
        logger.warning("%s: the header does not state an orientation; left and right are a guess", path.name)
        return
    try:
        differs = not np.allclose(header.get_sform(), header.get_qform(), atol=0.1)
    except ValueError:
        differs = True
    if header["sform_code"] and header["qform_code"] and differs:
        logger.warning("%s: sform and qform in the header differ; a valid sform takes precedence", path.name)
