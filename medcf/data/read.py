# SPDX-License-Identifier: Apache-2.0
"""Reads an image of any supported format, detected by content: DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, BMP, TIFF."""

from __future__ import annotations

import gzip
import logging
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from numpy.typing import NDArray

from medcf.data.case import Case, as_case
from medcf.data.dicom.header import (
    count_dicom_frames,
    holds_volume,
    looks_like_dicom,
    open_dicom,
    quiet_pydicom,
)
from medcf.data.dicom.picture import read_dicom
from medcf.data.dicom.series import list_dicom_files, read_dicom_volume
from medcf.data.image import Limits, Pixels, check_extent, digest, picture_affine
from medcf.data.itk_image import inspect_itk, is_itk, read_itk
from medcf.data.nifti import check_nifti, header_of_pair, is_nifti, read_nifti
from medcf.data.raster import TIFF_MARKS, inspect_raster, read_raster
from medcf.runtime.errors import UnreadableImage, as_damage

__all__ = ["FileInfo", "StudyReader", "choose_frame", "inspect_file", "read", "sniff"]

logger = logging.getLogger(__name__)

_RASTER_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", *TIFF_MARKS)
_OTHER_MARKS = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF document",
    b"GIF8": "a GIF",
    b"\x89HDF": "an HDF5 file",
}
_LIMITS = Limits()

Source = Case | str | PathLike[str] | Sequence[str | PathLike[str]]


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


def read(source: Source, frame: int | str | None = None, *, limits: Limits = _LIMITS) -> MetaTensor:
    """Read an image: a picture, a frame of a loop, or a volume.

    The array's axes are those of the file (NIfTI), or column, row and slice. Metadata: ``affine`` and
    ``original_affine`` (indices to RAS+ mm; the unit matrix if the file does not state its position, see
    :mod:`medcf.data.image`), ``region`` (first column and row, end column and row of the actual picture, if DICOM names
    an ultrasound region), ``value_range`` (the stored values that map to 0 and 1, or a volume's smallest and largest
    values), ``source_format``, ``modality``, ``frame``, ``num_frames``, ``sha256`` (of the array; it seeds the noise),
    ``filename_or_obj`` (the file; for a series, its first slice) and, if the case names one, ``mask`` (bool, on the
    image's voxels).

    Args:
        source: a case; a file with any name; a folder with one DICOM series; or the series' files.
        frame: for a loop: ``"first"``, ``"middle"``, ``"last"`` or an index (negative indices count from the end); None
            takes the case's frame, or the middle one.
        limits: maximum size of the image.

    Returns:
        float32: a picture (C, X, Y) in [0, 1], where 0 is black and 1 is white whatever the format's convention, with
        C = 3 if it is in color; or a volume (1, X, Y, Z) in its own units, for DICOM after rescaling to HU or other
        units.

    Raises:
        UnreadableImage: if a file is missing, damaged, not an image, or has no such frame, or slices form no volume.
        ValueError: if ``frame`` is invalid.
    """
    array, meta = _load(as_case(source), frame, limits)
    affine = torch.from_numpy(np.asarray(meta.pop("affine"), dtype=np.float64))
    return MetaTensor(torch.from_numpy(array), affine=affine, meta=meta)


class StudyReader(ImageReader):
    """A reader for MONAI's loaders that reads whatever :func:`read` does: ``LoadImaged("image", reader=StudyReader)``.

    Pass ``expanduser=False`` to the loader if the items hold a :class:`medcf.data.Case`, and leave its
    ``ensure_channel_first`` off, because the channel is already first.

    Args:
        frame: see :func:`read`.
        max_pixels: size limit for a picture.
        max_voxels: size limit for a volume.
    """

    def __init__(
        self, frame: int | str | None = None, max_pixels: float = _LIMITS.pixels, max_voxels: float = _LIMITS.voxels
    ) -> None:
        self.frame = frame
        self.limits = Limits(max_pixels, max_voxels)
        # MONAI's loader registers every reader it knows, and warns about the one whose GPU decoder is not installed
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")

    def verify_suffix(self, filename: Any) -> bool:
        """Accept any file: its content determines the format."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Case:
        """Only name what to read, because MONAI would take a reading error for a missing reader."""
        if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 1:
            data = data[0]
        return as_case(data)

    def get_data(self, img: Case) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Read the array and its metadata.

        Raises:
            UnreadableImage: see :func:`read`.
        """
        return _load(img, self.frame, self.limits)


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


def _load(case: Case, frame: int | str | None, limits: Limits) -> tuple[NDArray[np.float32], dict[str, Any]]:
    files = list(case.files)
    if len(files) == 1 and files[0].is_dir():
        files = list_dicom_files(files[0])
    files = [header_of_pair(file) or file for file in files]
    first, pixels = _decode(files, case.frame if frame is None else frame, limits)
    if pixels.affine is not None:
        check_extent(first, pixels.affine, pixels.array.shape[1:])
    meta = pixels.describe() | {"filename_or_obj": str(first)}
    if "spacing_mm" in case.columns and pixels.array.ndim == 3:
        row, column = (float(mm) for mm in case.columns["spacing_mm"])
        meta |= {name: picture_affine((column, row)) for name in ("affine", "original_affine")} | {"space": "RAS"}
    array = np.ascontiguousarray(pixels.array, dtype=np.float32)
    meta["sha256"] = digest(array)
    if case.mask is not None:
        meta["mask"] = _read_mask(case.mask, array.shape, meta["affine"], limits)
    return array, meta


def _decode(files: Sequence[Path], frame: int | str | None, limits: Limits) -> tuple[Path, Pixels]:
    """Read the one file, or the series; also return the file that names it."""
    if len(files) > 1:
        if odd := next((file for file in files if sniff(file) != "dicom"), None):
            reason = "is one of several files that are not a DICOM series"
            raise UnreadableImage(odd, reason, "Give a NIfTI file, or a folder with one DICOM series.")
        return read_dicom_volume(files, limits)
    info = inspect_file(files[0], limits)
    if info.source_format in ("nifti", "itk"):
        return files[0], (read_nifti if info.source_format == "nifti" else read_itk)(files[0])
    if info.spatial_dims == 3 and frame is None:
        return read_dicom_volume(files, limits)
    index = choose_frame(info, frame)
    return files[0], read_dicom(files[0], index) if info.source_format == "dicom" else read_raster(files[0], index)


def _read_mask(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], limits: Limits) -> NDArray[np.bool_]:
    """Read a mask on the voxels of its image: everything above 0 belongs to it."""
    array, meta = _load(as_case(path), None, limits)
    if array.shape[1:] != shape[1:] or not np.allclose(meta["affine"], affine, atol=0.05):
        remedy = "Resample it onto the volume with nearest-neighbor interpolation."
        raise UnreadableImage(path, "is a mask whose voxels do not match its volume", remedy)
    inside = array[:1] > 0
    if not inside.any():
        raise UnreadableImage(path, "is an empty mask", "Give one in which the brain is 1.")
    if (labels := len(np.unique(array[:1][inside]))) > 1:
        logger.warning("%s holds %d labels; all of them count as brain", path.name, labels)
    return inside


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
