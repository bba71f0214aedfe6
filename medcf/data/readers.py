# SPDX-License-Identifier: Apache-2.0
"""Reads a 2D image of any supported format: DICOM, NIfTI, PNG, JPEG, BMP or TIFF, recognised by its content."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

from monai.data import MetaTensor

from medcf.data.dicom_reader import count_dicom_frames, discreet, looks_like_dicom, open_dicom, read_dicom
from medcf.data.nifti_reader import check_nifti, read_nifti
from medcf.data.pixels import to_luminance
from medcf.data.raster_reader import count_raster_frames, read_raster
from medcf.runtime.errors import UnreadableImage

__all__ = ["Study", "choose_frame", "inspect_study", "read_study", "sniff"]

_NIFTI_MARKS = {b"n+1\0", b"n+2\0", b"ni1\0", b"ni2\0"}
_RASTER_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_OTHER_MARKS = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF document",
    b"GIF8": "a GIF",
    b"\x89HDF": "an HDF5 file",
    b"NRRD": "an NRRD file",
}


@dataclass(frozen=True)
class Study:
    """What can be told about a file without decoding its pixels.

    Attributes:
        path: the file.
        source_format: ``"dicom"``, ``"nifti"`` or ``"raster"``.
        num_frames: number of frames.
        series: DICOM's series instance UID, empty for other formats. Never to be shown.
        modality: DICOM's modality, empty for other formats.
    """

    path: Path
    source_format: str
    num_frames: int = 1
    series: str = ""
    modality: str = ""


def sniff(path: str | PathLike[str]) -> str:
    """Tell the format from the first bytes.

    Returns:
        ``"dicom"``, ``"nifti"``, ``"raster"``, or ``""`` for anything else.

    Raises:
        UnreadableImage: if the file is missing, empty or must not be read.
    """
    head = _head(Path(path))
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as stream:
                head = stream.read(352)
        except (OSError, EOFError, zlib.error):
            return ""
        return "nifti" if _is_nifti(head) else ""
    if head[128:132] == b"DICM":
        return "dicom"
    if _is_nifti(head):
        return "nifti"
    if head.startswith(_RASTER_MARKS):
        return "raster"
    return "dicom" if looks_like_dicom(head) else ""


@discreet()
def inspect_study(path: str | PathLike[str]) -> Study:
    """Check that a file holds a 2D image, or a cine loop of them, as far as its header tells.

    Raises:
        UnreadableImage: if it does not.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "dicom":
        dataset = open_dicom(path)
        series, modality = str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("Modality", "") or "")
        return Study(path, kind, count_dicom_frames(path, dataset), series, modality)
    if kind == "nifti":
        check_nifti(path)
        return Study(path, kind)
    if kind == "raster":
        return Study(path, kind, count_raster_frames(path))
    head = _head(path)
    what = next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), "of an unknown format")
    if head[:2] == b"\x1f\x8b":
        what = "a compressed archive"
    elif path.name.lower().endswith((".nii", ".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff", ".bmp")):
        what = "not what its name says: damaged or of another format"
    raise UnreadableImage(path, f"is {what}", "Give DICOM, NIfTI, PNG, JPEG, BMP or TIFF files.")


def read_study(path: str | PathLike[str], frame: int | str = "middle", *, color: bool = False) -> MetaTensor:
    """Read a 2D image as float32 in [0, 1], where 0 is black and 1 is white whatever the format's convention.

    The meta data hold ``affine`` (indices (row, column, slice) to RAS+ mm), ``spacing_mm`` (between rows, between
    columns; NaN if unknown, see :func:`medcf.data.get_spacing`), ``region`` (first row, first column, end row, end
    column of the picture proper; the whole matrix unless DICOM names an ultrasound region), ``original_shape`` (H, W),
    ``value_range`` (the stored values that became 0 and 1), ``filename_or_obj``, ``frame``, ``num_frames``,
    ``source_format``, ``photometric`` and ``modality``. All of them can be collated into a batch.

    Args:
        path: a DICOM, NIfTI, PNG, JPEG, BMP or TIFF file, whatever its name.
        frame: of a multi-frame file: ``"first"``, ``"middle"``, ``"last"`` or an index (negative ones count from the
            end).
        color: keep three channels if the file has colour, which :class:`medcf.transforms.RemoveOverlays` looks for;
            by default colour becomes luminance.

    Returns:
        (1, H, W), or (3, H, W) for a coloured file if ``color``.

    Raises:
        UnreadableImage: if the file is missing, damaged, no image, a volume, or has no such frame.
        ValueError: if ``frame`` is none of the above.
    """
    study = inspect_study(path)
    index = choose_frame(study, frame)
    if study.source_format == "dicom":
        pixels = read_dicom(study.path, index)
    elif study.source_format == "nifti":
        pixels = read_nifti(study.path)
    else:
        pixels = read_raster(study.path, index)
    image = pixels.to_tensor(str(path))
    return image if color else cast(MetaTensor, to_luminance(image))


def choose_frame(study: Study, frame: int | str) -> int:
    """Turn ``"first"``, ``"middle"``, ``"last"`` or an index into the index of an existing frame.

    A file with a single frame yields that frame, whatever index was asked for, so that one setting serves a folder in
    which loops and stills are mixed.

    Raises:
        UnreadableImage: if a loop has no such frame.
        ValueError: if ``frame`` is neither a word nor a whole number.
    """
    count = study.num_frames
    words = {"first": 0, "middle": count // 2, "last": count - 1}
    if isinstance(frame, str) and frame in words:
        return words[frame]
    try:
        index = int(frame)
    except ValueError as error:
        raise ValueError(f"frame must be 'first', 'middle', 'last' or a whole number, got {frame!r}") from error
    if count == 1:
        return 0
    if not -count <= index < count:
        reason = f"has {count} frames, and frame {index} was asked for"
        raise UnreadableImage(study.path, reason, f"Choose a frame from 0 to {count - 1}.")
    return index % count


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(352)
    except FileNotFoundError as error:
        raise UnreadableImage(path, "does not exist", "Check the path.") from error
    except IsADirectoryError as error:
        raise UnreadableImage(path, "is a folder", "Give it as dataset_dir.") from error
    except OSError as error:
        raise UnreadableImage(path, f"cannot be opened ({type(error).__name__})", "Check its permissions.") from error
    if not head:
        raise UnreadableImage(path, "is empty", "Export it again.")
    return head


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in _NIFTI_MARKS or head[4:8] in _NIFTI_MARKS
