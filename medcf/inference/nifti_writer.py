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
from medcf.inference.case_result import CaseResult

__all__ = ["NiftiWriter", "to_nifti"]

DESCRIPTION = b"SYNTHETIC counterfactual (medcf)"  # the header field holds 80 bytes


_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class NiftiWriter:
    """Writes ``counterfactual``, ``difference`` and ``trajectory``, each as ``.nii.gz`` in the input's geometry.

    ``counterfactual`` and ``trajectory`` hold the intensities as read: 0 black and 1 white of an image, a volume's own
    units; ``difference`` is signed, in fractions of the full intensity range. All are float32 and say SYNTHETIC in the
    header's ``descrip``. A volume with a brain mask also gets ``saliency``, the magnitude of the difference within the
    mask and 0 outside (ControlCG, section 2), and ``mask``.

    Args:
        trajectory: whether to write the path; None does so for images alone, whose methods have one.
    """

    def __init__(self, trajectory: bool | None = None) -> None:
        self.trajectory = trajectory

    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Write the images of ``result`` into ``folder``."""
        volume = result.original.ndim == 3
        images = {"counterfactual": result.counterfactual, "difference": result.difference}
        if result.mask is not None:
            images |= {"saliency": np.abs(result.difference) * result.mask, "mask": result.mask.astype(np.float32)}
        if self.trajectory or (self.trajectory is None and not volume):
            images["trajectory"] = np.moveaxis(result.trajectory, 0, -1)
        for name, image in images.items():
            nib.save(to_nifti(image, result), folder / f"{name}.nii.gz")


def to_nifti(image: NDArray[np.floating], result: CaseResult) -> nib.Nifti1Image:
    """Bring a picture into the array order and geometry in which its input was stored.

    A NIfTI input's own axes, shape, affine and codes come back exactly. Other formats get ITK's convention for 2D
    images: axis 0 along the columns, axis 1 along the rows; volumes keep their axes and lie in the scanner's space.

    Args:
        image: (H, W) or (H, W, T); (X, Y, Z) or (X, Y, Z, T) of a volume.
        result: the case, for its affine and its input file.

    Returns:
        Image of shape (X, Y, 1), (X, Y, Z) or, for a NIfTI input, of that file's shape; T, if any, is the fourth axis.
    """
    if result.original.ndim == 3:
        return _volume(image, result)
    planes = image[:, :, None] if image.ndim == 2 else image[:, :, None, :]
    picture = nib.Nifti1Image(np.ascontiguousarray(planes, dtype=np.float32), result.affine)
    if result.source_format == "nifti":
        stored = _as_stored(picture, result.path)
    else:
        stored = nib.Nifti1Image(np.swapaxes(picture.get_fdata(dtype=np.float32), 0, 1), result.affine[:, [1, 0, 2, 3]])
    stored.header["descrip"] = DESCRIPTION
    stored.header.set_xyzt_units("mm" if result.spacing else 0)
    return stored


def _volume(image: NDArray[np.floating], result: CaseResult) -> nib.Nifti1Image:
    """Give a volume the header fields that place its input in space."""
    array = np.ascontiguousarray(image, dtype=np.float32)
    stored = nib.Nifti1Image(array, result.affine)
    if result.source_format == "nifti":
        source = cast(nib.Nifti1Image, nib.load(result.path))
        series = array.shape[3:]
        if not series:  # a file may store a volume with further axes of length 1
            array = array.reshape(source.shape)
        stored = nib.Nifti1Image(array, source.affine)
        for name in _GEOMETRY:
            stored.header[name] = source.header[name]
        stored.header["pixdim"][:4] = source.header["pixdim"][:4]
    else:
        stored.set_qform(result.affine, code=1)
        stored.set_sform(result.affine, code=1)
        stored.header.set_xyzt_units("mm")
    stored.header["descrip"] = DESCRIPTION
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
