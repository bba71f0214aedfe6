# SPDX-License-Identifier: Apache-2.0
"""Writes a case's images as NIfTI in the geometry of the input."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from numpy.typing import NDArray

from medcf.data.nifti_reader import read_nifti
from medcf.engines.case_result import CaseResult

__all__ = ["NiftiWriter", "to_nifti"]

DESCRIPTION = b"SYNTHETIC counterfactual (medcf)"  # the header field holds 80 bytes


class NiftiWriter:
    """Writes ``counterfactual``, ``difference`` and ``trajectory``, each as ``.nii.gz`` in the input's geometry.

    ``counterfactual`` and ``trajectory`` hold the intensities as read, 0 black and 1 white; ``difference`` is signed,
    in fractions of the full intensity range. All are float32 and say SYNTHETIC in the header's ``descrip``.
    """

    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Write the images of ``result`` into ``folder``."""
        images = {
            "counterfactual": result.counterfactual,
            "difference": result.difference,
            "trajectory": np.moveaxis(result.trajectory, 0, -1),
        }
        for name, image in images.items():
            nib.save(to_nifti(image, result), folder / f"{name}.nii.gz")


def to_nifti(image: NDArray[np.floating], result: CaseResult) -> nib.Nifti1Image:
    """Bring a picture into the array order and geometry in which its input was stored.

    A NIfTI input's own axes, shape and affine come back exactly. Other formats get ITK's convention for 2D images:
    axis 0 along the columns, axis 1 along the rows.

    Args:
        image: (H, W) or (H, W, T).
        result: the case, for its affine and its input file.

    Returns:
        Image of shape (X, Y, 1) or, for a NIfTI input, of that file's shape; T, if any, is the fourth axis.
    """
    planes = image[:, :, None] if image.ndim == 2 else image[:, :, None, :]
    picture = nib.Nifti1Image(np.ascontiguousarray(planes, dtype=np.float32), result.affine)
    if result.source_format == "nifti":
        stored = _as_stored(picture, result.path)
    else:
        stored = nib.Nifti1Image(np.swapaxes(picture.get_fdata(dtype=np.float32), 0, 1), result.affine[:, [1, 0, 2, 3]])
    stored.header["descrip"] = DESCRIPTION
    stored.header.set_xyzt_units("mm" if result.spacing else 0)
    return stored


def _as_stored(picture: nib.Nifti1Image, path: Path) -> nib.Nifti1Image:
    """Turn a picture back into the axes of the NIfTI file it was read from."""
    source = cast(nib.Nifti1Image, nib.load(path))
    affine = read_nifti(path).affine
    series = picture.shape[3:]
    array = picture.get_fdata(dtype=np.float32)
    if affine is None:  # no geometry: the reader took (column, row) as stored
        array = np.swapaxes(array, 0, 1)
    else:
        array = apply_orientation(array, ornt_transform(io_orientation(affine), io_orientation(source.affine)))
    shape = source.shape[:3] + (1,) * (3 - len(source.shape[:3])) if series else source.shape
    stored = nib.Nifti1Image(array.reshape(shape + series), source.affine)
    for name in ("qform", "sform"):
        _, code = getattr(source.header, f"get_{name}")(coded=True)
        getattr(stored, f"set_{name}")(source.affine, code=int(code))
    return stored
