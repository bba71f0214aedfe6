# SPDX-License-Identifier: Apache-2.0
"""Tells from the content of a file, not from its name, what image it holds, without decoding any pixels."""

from __future__ import annotations

import gzip
import stat
import zlib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from medcf.data.dicom.header import count_dicom_frames, holds_volume, looks_like_dicom, open_dicom, quiet_pydicom
from medcf.data.image import Limits
from medcf.data.itk_image import inspect_itk, is_itk
from medcf.data.nifti import check_nifti, is_nifti
from medcf.data.raster import TIFF_MARKS, inspect_raster
from medcf.runtime.errors import UnreadableImage, as_damage

__all__ = ["FileInfo", "choose_frame", "inspect_file", "sniff"]

_RASTER_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", *TIFF_MARKS)
_OTHER_MARKS = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF document",
    b"GIF8": "a GIF",
    b"\x89HDF": "an HDF5 file",
}
_LIMITS = Limits()


@dataclass(frozen=True)
class FileInfo:
    """What a file reveals without decoding its pixels.

    Attributes:
        path: the file.
        source_format: ``"dicom"``, ``"nifti"``, ``"itk"`` or ``"raster"``.
        size: two numbers for a picture or a loop, three for a volume.
        num_frames: number of frames in a loop.
        series: DICOM series instance UID, empty for other formats. Must never be shown.
        modality: DICOM modality, empty for other formats.
    """

    path: Path
    source_format: str
    size: tuple[int, ...]
    num_frames: int = 1
    series: str = ""
    modality: str = ""

    @property
    def spatial_dims(self) -> int:
        """2 for a picture or a loop, 3 for a volume."""
        return len(self.size)


def sniff(path: str | PathLike[str]) -> str:
    """Detect the format by the first bytes.

    Returns:
        ``"dicom"``, ``"nifti"``, ``"itk"``, ``"raster"``, or ``""`` for anything else.

    Raises:
        UnreadableImage: if the file is missing, empty or unreadable.
    """
    head = _head(Path(path))
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as stream:
                head = stream.read(352)
        except (OSError, EOFError, zlib.error):
            return ""
        return "nifti" if is_nifti(head) else ""
    if head[128:132] == b"DICM":
        return "dicom"
    if is_nifti(head):
        return "nifti"
    if is_itk(head):
        return "itk"
    if head.startswith(_RASTER_MARKS):
        return "raster"
    return "dicom" if looks_like_dicom(head) else ""


@quiet_pydicom()
def inspect_file(path: str | PathLike[str], limits: Limits = _LIMITS) -> FileInfo:
    """Inspect a file's header and tell which image it holds, if that may be read.

    Raises:
        UnreadableImage: if there is no readable image.
    """
    path = Path(path)
    with as_damage(path):
        info = _inspect(path, sniff(path))
        limits.check(path, info.size)
    return info


def _inspect(path: Path, kind: str) -> FileInfo:
    if kind == "dicom":
        header = open_dicom(path)
        series, modality = str(header.get("SeriesInstanceUID", "") or ""), str(header.get("Modality", "") or "")
        frames = count_dicom_frames(path, header)
        size = (int(header.Columns), int(header.Rows), *((frames,) if holds_volume(header) else ()))
        return FileInfo(path, kind, size, frames, series, modality)
    if kind == "nifti":
        return FileInfo(path, kind, check_nifti(path))
    if kind == "itk":
        return FileInfo(path, kind, inspect_itk(path))
    if kind == "raster":
        frames, size = inspect_raster(path)
        return FileInfo(path, kind, size, frames)
    raise _unknown(path)


def choose_frame(info: FileInfo, frame: int | str | None) -> int:
    """Convert a frame selection to an index.

    A file with a single frame yields that frame, whatever index was requested, so one setting works for a folder of
    loops and still images.

    Raises:
        UnreadableImage: if a loop has no such frame.
        ValueError: if ``frame`` is neither a known word nor a whole number.
    """
    count = info.num_frames
    words = {"first": 0, "middle": count // 2, "last": count - 1}
    if frame is None or (isinstance(frame, str) and frame in words):
        return words[frame or "middle"]
    try:
        index = int(frame)
    except ValueError as error:
        raise ValueError(f"frame must be 'first', 'middle', 'last' or a whole number, got {frame!r}") from error
    if count == 1:
        return 0
    if not -count <= index < count:
        reason = f"has {count} frames, but frame {index} was requested"
        raise UnreadableImage(info.path, reason, f"Choose a frame from 0 to {count - 1}.")
    return index % count


def _head(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe would wait forever
            raise UnreadableImage(path, "is a pipe, a socket or a device, not a file", "Leave it out.")
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


def _unknown(path: Path) -> UnreadableImage:
    """Describe a file of an unsupported format as precisely as possible."""
    head, name = _head(path), path.name.lower()
    what = next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), "of an unknown format")
    remedy = "Give DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, BMP or TIFF files."
    if name.endswith((".mgz", ".mgh")):
        what, remedy = "a FreeSurfer volume", f"Convert it: mri_convert {path.name} {path.stem}.nii.gz"
    elif head[:2] == b"\x1f\x8b":
        what = "a compressed archive"
    elif name.endswith((".hdr", ".img")):
        what, remedy = "not a NIfTI file (Analyze files do not state an orientation)", "Save the volume as NIfTI."
    elif name.endswith((".nii", ".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff", ".bmp")):
        what = "not in the format of its name, or damaged"
    return UnreadableImage(path, f"is {what}", remedy)
