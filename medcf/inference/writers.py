# SPDX-License-Identifier: Apache-2.0
"""Writers for cases, by name: NIfTI in the input's geometry, and panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medcf.data.nifti import open_nifti
from medcf.inference.case_result import CaseResult, Writer
from medcf.inference.panel import PanelWriter
from medcf.registry import WRITERS, create

__all__ = ["NiftiWriter", "create_writers", "to_nifti"]

DESCRIPTION = b"SYNTHETIC counterfactual (medcf)"  # the header field holds 80 bytes
UNCHANGED = b"input returned unchanged (medcf)"
ORIGINAL = b"input after preprocessing (medcf)"

_FORMATS = ("nifti", "dicom")  # writers that ``output_format`` chooses among

_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class NiftiWriter:
    """Write ``original``, ``counterfactual``, ``difference``, ``trajectory`` as ``.nii.gz`` in the input's geometry.

    ``original`` is the input as preprocessing left it, without burned-in text: what to compare ``counterfactual`` with,
    because ``counterfactual`` minus ``difference`` is not exactly that where gray values were clipped. ``original``,
    ``counterfactual`` and ``trajectory`` hold the intensities as read: 0 black and 1 white for a picture, a volume's
    own units; ``difference`` is signed, in fractions of the full intensity range. With several seeds, their mean is
    ``expected``, its difference ``expected_difference``, and their standard deviation ``spread``. All are float32. All
    but ``original`` say SYNTHETIC in the header's ``descrip``, or that the input was returned unchanged. A volume with
    a mask also gets ``saliency``, the magnitude of the difference within the mask and 0 outside (ControlCG, section 2),
    and ``mask``. A bundle with a map of findings writes ``attribution``, whose header says which image is subtracted
    from which, and ``organ``.

    Args:
        trajectory: whether to write the trajectory; None does so only for pictures, whose methods have one.
    """

    def __init__(self, trajectory: bool | None = None) -> None:
        self.trajectory = trajectory

    def __call__(self, result: CaseResult, folder: Path) -> None:
        """Write the images of ``result`` to ``folder``."""

        def write(name: str, image: NDArray[np.floating], description: bytes | None = None) -> None:
            nib.save(to_nifti(image, result, description), folder / f"{name}.nii.gz")

        write("original", result.original, ORIGINAL)
        write("counterfactual", result.counterfactual)
        write("difference", result.difference)
        for name in ("expected", "expected_difference", "spread"):
            image = getattr(result, name)
            if image is not None:
                write(name, image)
        if result.mask is not None:
            saliency = np.abs(result.difference)
            saliency[~result.mask] = 0
            write("saliency", saliency)
            del saliency
            write("mask", result.mask.astype(np.float32))
        if result.attribution is not None and result.organ is not None:
            stored = to_nifti(result.attribution, result)
            if result.synthetic:
                stored.header["descrip"] = f"SYNTHETIC {result.row['attribution_sign']} in the organ (medcf)".encode()
            nib.save(stored, folder / "attribution.nii.gz")
            write("organ", result.organ.astype(np.float32))
        if result.trajectory is not None and (
            self.trajectory or (self.trajectory is None and result.original.ndim == 2)
        ):
            write("trajectory", np.moveaxis(result.trajectory, 0, -1))


def to_nifti(image: NDArray[np.floating], result: CaseResult, description: bytes | None = None) -> nib.Nifti1Image:
    """Convert an image to the shape and geometry in which its input was stored.

    A NIfTI input's own shape, affine and header fields are restored exactly. Other formats keep their axes, columns
    first, and the input's position.

    Args:
        image: (*spatial), or (*spatial, T).
        result: the case, for its affine and its input file.
        description: the header's ``descrip``, at most 80 bytes; None says whether the case is synthetic.

    Returns:
        Image of shape (X, Y, 1), (X, Y, Z) or, for a NIfTI input, of that file's shape; T, if any, is the fourth axis.
    """
    flat = result.original.ndim == 2
    series = image.shape[result.original.ndim :]
    shape = (*result.original.shape, *((1,) if flat else ()), *series)
    array = np.ascontiguousarray(image, dtype=np.float32)
    if result.source_format == "nifti":
        source = open_nifti(result.path)
        # a file may store an image with additional axes of length 1
        shape = (*source.shape[:3], *(1,) * (3 - len(source.shape)), *series) if series else source.shape
        stored = nib.Nifti1Image(array.reshape(shape), source.affine)
        stored.header.quaternion_threshold = (
            source.header.quaternion_threshold
        )  # anything that could be read can be written
        for name in _GEOMETRY:
            stored.header[name] = source.header[name]
        stored.header["pixdim"][:4] = source.header["pixdim"][:4]
    else:
        stored = nib.Nifti1Image(array.reshape(shape), result.affine)
        if not flat:
            stored.set_qform(result.affine, code=1)
            stored.set_sform(result.affine, code=1)
        stored.header.set_xyzt_units("mm" if result.spacing else 0)
    stored.header["descrip"] = description or (DESCRIPTION if result.synthetic else UNCHANGED)
    return stored


WRITERS.add(
    "nifti", "Original, counterfactual, difference and trajectory as NIfTI in the input's geometry", NiftiWriter
)
WRITERS.add(
    "dicom", "Derived DICOM objects in the input's study, which say that they are synthetic", "medcf.dicom:DicomWriter"
)
WRITERS.add("panel", "One picture per case: input, counterfactual, difference", PanelWriter)


def create_writers(
    output_format: str | Sequence[str] | None = None, **options: Mapping[str, Any] | None
) -> list[Writer]:
    """Create writers by name.

    Args:
        output_format: which of the writers of images are wanted, such as ``"dicom"``, ``"dicom,nifti"`` or a list; None
            takes all that have options. Other writers, such as the panel, are not affected.
        options: name in ``medcf.registry.WRITERS`` to the writer's arguments; None disables a writer that another
            config names.

    Raises:
        ValueError: if there is no such writer (the message lists the known ones), or it rejects an argument.
    """
    if output_format is not None:
        names = output_format.split(",") if isinstance(output_format, str) else output_format
        wanted = dict.fromkeys(str(name).strip() for name in names if str(name).strip())
        others = {name: given for name, given in options.items() if name not in _FORMATS}
        options = {**{name: options.get(name) or {} for name in wanted}, **others}
    return [create(WRITERS, name, **arguments) for name, arguments in options.items() if arguments is not None]
