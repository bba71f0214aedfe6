# SPDX-License-Identifier: Apache-2.0
"""Reads 3D NIfTI volumes with nibabel: the stored array, its own axes, and where it lies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.readers import sniff
from medcf.runtime.errors import UnreadableImage

__all__ = ["check_nifti_volume", "header_of_pair", "read_nifti_volume"]

logger = logging.getLogger(__name__)

_MM = {"meter": 1000.0, "micron": 0.001}


def header_of_pair(path: Path) -> Path | None:
    """Return the header that belongs to the pixels of a .hdr/.img pair, None where ``path`` is no such file."""
    header = path.with_suffix(".hdr")
    return header if path.suffix.lower() == ".img" and header.is_file() and sniff(header) == "nifti" else None


def check_nifti_volume(path: Path) -> tuple[int, int, int]:
    """Check from the header that the file holds one volume.

    Returns:
        Its size.

    Raises:
        UnreadableImage: if it is damaged, flat, a time series or colored.
    """
    return _size(path, _load(path))


def read_nifti_volume(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read a volume of 3 dimensions; further ones may have length 1.

    Values that are not finite, which some tools write outside of the brain, become 0.

    Returns:
        (X, Y, Z) in scaled units, axes as stored, and the affine from indices to RAS+ mm: the header's sform if it has
        one, else its qform, else voxel sizes alone (with a warning).

    Raises:
        UnreadableImage: as :func:`check_nifti_volume`, or if the pixels are damaged or the affine is singular.
    """
    image = _load(path)
    size = _size(path, image)
    try:
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(size)
        affine = np.array(image.affine, dtype=np.float64)
        unit = str(image.header.get_xyzt_units()[0])
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        remedy = "Correct its sform or qform, or export it again."
        raise UnreadableImage(path, "says nothing usable about where its voxels lie", remedy)
    affine[:3] *= _MM.get(unit, 1.0)
    _warn(path, image)
    odd = ~np.isfinite(values)
    if odd.any():
        logger.warning("%s: %d voxels are not finite and count as 0", path.name, int(odd.sum()))
        values = np.where(odd, np.float32(0), values)
    return values, affine


def _load(path: Path) -> Any:
    import nibabel as nib

    try:
        return nib.load(path)
    except Exception as error:
        raise UnreadableImage(path, f"is a damaged NIfTI file ({type(error).__name__})", "Export it again.") from error


def _size(path: Path, image: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in image.shape)
    shown = " x ".join(map(str, shape))
    if len(shape) > 3 and any(n > 1 for n in shape[3:]):
        reason = f"has the wrong dimension: a series of volumes ({shown})"
        raise UnreadableImage(path, reason, "Save one of its volumes, or their mean, in a file of its own.")
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise UnreadableImage(path, f"has the wrong dimension: {shown} is no volume", "Give a 3D volume.")
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == "c":
        raise UnreadableImage(path, f"holds {'colors' if kind.fields else 'complex values'}", "Save gray values.")
    return shape[0], shape[1], shape[2]


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
