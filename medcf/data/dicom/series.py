# SPDX-License-Identifier: Apache-2.0
"""Reads the DICOM files of a CT, MR or PET series: single slices or enhanced multi-frame objects.

pydicom decodes; :mod:`medcf.data.dicom.geometry` computes the geometry. ITK's series readers turn any set of slices
into a volume and straighten a tilted one; highdicom refuses a tilted one and is an optional package. The tests compare
with both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.dicom.decoder import decode_frame
from medcf.data.dicom.geometry import SlicePlace, arrange
from medcf.data.dicom.header import NotAnImage, count_dicom_frames, looks_like_dicom, open_dicom, quiet_pydicom
from medcf.data.dicom.lut import InvalidHeader, padding_of, rescale
from medcf.data.image import Limits, Pixels
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.synthetic import says_synthetic

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["functional_group", "list_dicom_files", "open_slices", "read_dicom_volume"]

logger = logging.getLogger(__name__)

_MODALITIES = ("CT", "MR", "PT")


@quiet_pydicom()
def list_dicom_files(folder: Path) -> list[Path]:
    """List the files in a folder that could form one image: its DICOM images, or its only NIfTI file.

    Sidecar files, DICOMDIR, reports and other objects without pixels are left out and logged.

    Raises:
        UnreadableImage: if there is no DICOM image, or one is damaged.
    """
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        with path.open("rb") as stream:
            head = stream.read(352)
        if not looks_like_dicom(head):
            others += [path] if path.name.lower().endswith((".nii", ".nii.gz")) else []
            continue
        try:
            open_dicom(path)
        except NotAnImage as error:
            logger.info("%s %s and is left out", path.name, error.reason)
        else:
            files.append(path)
    if not files and len(others) == 1:
        return others
    if not files:
        raise UnreadableImage(folder, "holds no DICOM slices", "Give a folder with one series, or a NIfTI file.")
    return files


@quiet_pydicom()
def read_dicom_volume(files: Sequence[Path], limits: Limits) -> tuple[Path, Pixels]:
    """Read the files of one series, in any order.

    Args:
        files: files of the series.
        limits: maximum size of the volume.

    Returns:
        The file of the first slice; the volume (1, columns, rows, slices) in rescaled units.

    Raises:
        UnreadableImage: if a file is damaged or belongs to another series, or if the slices do not form a volume.
    """
    headers = {path: open_dicom(path) for path in files}
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers.values()}
    if len(series) > 1:
        reason = f"is one of {len(files)} files of {len(series)} series"
        raise UnreadableImage(files[-1], reason, "Give one series only, or its folder as dataset_dir.")
    slices, affine = arrange([one for path, header in headers.items() for one in open_slices(path, header)])
    first = slices[0]
    size = (first.size[1], first.size[0], len(slices))
    limits.check(first.path, size)
    values = np.empty(size, np.float32)
    padding: dict[int, NDArray[np.bool_]] = {}
    for index, one in enumerate(slices):
        pixels, outside = _pixels(one, headers[one.path])
        values[:, :, index] = pixels.T
        if outside is not None:
            padding[index] = outside.T
    _fill_padding(values, padding)
    if not np.isfinite(values).all():
        raise UnreadableImage(first.path, "holds values that are not finite", "Export it again.")
    ends = (float(values.min()), float(values.max()))
    modality = str(headers[first.path].get("Modality", "") or "")
    synthetic = any(map(says_synthetic, headers.values()))
    return first.path, Pixels(values[None], affine, "dicom", ends, modality=modality, synthetic=synthetic)


def _fill_padding(values: NDArray[np.float32], padding: dict[int, NDArray[np.bool_]]) -> None:
    """Give padding the smallest value inside the field of view, unless it is a background between 0 and that value."""
    inside = [values[:, :, i][~padding[i]] if i in padding else values[:, :, i] for i in range(values.shape[2])]
    parts = [part for part in inside if part.size]
    if not padding or not parts:
        return
    darkest = min(float(part.min()) for part in parts)
    for index, outside in padding.items():
        plane = values[:, :, index]
        plane[outside & ((plane < min(darkest, 0.0)) | (plane > darkest))] = darkest


@quiet_pydicom()
def open_slices(path: Path, header: Dataset) -> list[SlicePlace]:
    """Find the positions of the slices in a file.

    Raises:
        UnreadableImage: if it is not a grayscale CT, MR or PET image, or does not state its position.
    """
    modality = str(header.get("Modality", "") or "")
    if modality not in _MODALITIES:
        reason = f"is an image of modality {modality or 'unknown'}, not a slice of a volume"
        raise UnreadableImage(path, reason, f"Give {', '.join(_MODALITIES)} series or NIfTI files.")
    if header.get("PhotometricInterpretation") != "MONOCHROME2":
        raise UnreadableImage(path, "holds colors or inverted gray values", "Give the original slices.")
    frames = count_dicom_frames(path, header)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if frames > 1 and (groups is None or len(groups) != frames):
        raise UnreadableImage(path, f"does not state the positions of its {frames} frames", "Export single slices.")
    try:
        return [_slice(path, header, index) for index in range(frames)]
    except UnreadableImage:
        raise
    except Exception as error:
        reason = f"does not state its position in the patient ({type(error).__name__})"
        raise UnreadableImage(path, reason, "Give the original slices, with position and orientation.") from error


def _slice(path: Path, header: Dataset, frame: int) -> SlicePlace:
    plane = functional_group(header, frame, "PlanePositionSequence")
    turn = functional_group(header, frame, "PlaneOrientationSequence")
    measures = functional_group(header, frame, "PixelMeasuresSequence")
    cosines = np.array([float(value) for value in turn.ImageOrientationPatient])
    rows, columns = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    position = np.array([float(value) for value in plane.ImagePositionPatient])
    spacing = tuple(float(value) for value in measures.PixelSpacing)
    right = abs(rows @ columns) < 1e-2 and np.allclose(lengths, 1, atol=1e-2)
    if not right or len(position) != 3 or len(spacing) != 2 or min(spacing) <= 0 or not np.isfinite(position).all():
        raise UnreadableImage(path, "has no usable position in the patient", "Export it again.")
    return SlicePlace(
        path=path,
        frame=frame,
        size=(int(header.Rows), int(header.Columns)),
        position=position,
        rows=rows / lengths[0],
        columns=columns / lengths[1],
        spacing=(spacing[0], spacing[1]),
    )


def functional_group(header: Dataset, frame: int, name: str) -> Any:
    """Return a frame's functional group, its own or shared; for objects that are not enhanced, the header itself."""
    for sequence, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(sequence)
        if groups and groups[index].get(name):
            return groups[index][name][0]
    return header


def _pixels(one: SlicePlace, header: Dataset) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Decode a slice to (rows, columns) in rescaled units and find its padding."""
    stored = decode_frame(one.path, header, one.frame)
    if stored.shape != one.size:
        raise UnreadableImage(one.path, "has pixel data that do not match its stated size", "Export it again.")
    try:
        group = functional_group(header, one.frame, "PixelValueTransformationSequence")
        return rescale(stored, group).astype(np.float32), padding_of(stored, header)
    except Exception as error:
        what = error if isinstance(error, InvalidHeader) else type(error).__name__
        raise UnreadableImage(one.path, f"is damaged DICOM (its rescaling, {what})", "Export it again.") from error
