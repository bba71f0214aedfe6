# SPDX-License-Identifier: Apache-2.0
"""Opens the header of a DICOM file and checks that it describes an image.

Pixel data stay in the file. Messages contain no attribute that could identify a patient.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medcf.data.image import inflated_size
from medcf.runtime.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "VOLUME_MODALITIES",
    "NotAnImage",
    "count_dicom_frames",
    "holds_volume",
    "looks_like_dicom",
    "open_dicom",
    "quiet_pydicom",
    "use_functional_groups",
]

VOLUME_MODALITIES = ("CT", "MR", "PT", "NM")

_NOT_PICTURES = {
    "SEG": "a segmentation",
    "RTDOSE": "a radiotherapy dose grid",
    "RTSTRUCT": "radiotherapy contours",
    "RTPLAN": "a radiotherapy plan",
    "SR": "a structured report",
    "KO": "a key object selection",
    "PR": "a presentation state",
    "DOC": "a document",
    "ECG": "a waveform",
    "REG": "a registration",
}
_OF_PICTURES = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
_ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LONGEST_INFLATED = 2**29  # bytes: pydicom inflates a deflated file completely to read its header
_SHORTEST_FRAME = 8  # bytes of a compressed frame: its item header


class NotAnImage(UnreadableImage):
    """A DICOM object that is not an image, such as a report; image folders may contain it."""


def looks_like_dicom(head: bytes) -> bool:
    """Check the first 132 bytes for the preamble's mark, or for a bare data set that starts with group 0002 or 0008."""
    if head[128:132] == b"DICM":
        return True
    return head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) >= 16


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings off the terminal and out of the logs: they quote header values, such as names."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def open_dicom(path: Path) -> Dataset:
    """Parse the header, check that it describes an image, and fill in attributes with only one possible value.

    Args:
        path: the file, with or without a preamble.

    Raises:
        UnreadableImage: if the file is damaged or not an image.
    """
    import pydicom

    try:
        with quiet_pydicom():
            _check_inflated(path)
            dataset = pydicom.dcmread(path, force=True, defer_size=1024)
            _check(path, dataset)
            if dataset.original_encoding[1] is False:
                _swap_tables(dataset)
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(path, f"is damaged DICOM ({type(error).__name__})", "Export it again.") from error
    return dataset


def holds_volume(dataset: Dataset) -> bool:
    """Tell whether the frames of a file are the slices of a volume."""
    frames, modality = dataset.get("NumberOfFrames", None) or 1, str(dataset.get("Modality", "") or "")
    return dataset.get("SOPClassUID") == _ENHANCED_US_VOLUME or (int(frames) > 1 and modality in VOLUME_MODALITIES)


def count_dicom_frames(path: Path, dataset: Dataset) -> int:
    """Return the number of frames stated in the header.

    Raises:
        UnreadableImage: if it is not a positive number, or exceeds what the pixel data can hold.
    """
    try:
        count = int(dataset.get("NumberOfFrames", None) or 1)
    except (TypeError, ValueError) as error:
        raise UnreadableImage(path, "is damaged DICOM (its number of frames)", "Export it again.") from error
    if count < 1:
        raise UnreadableImage(path, "is damaged DICOM (its number of frames)", "Export it again.")
    if count * _SHORTEST_FRAME > max(path.stat().st_size, _SHORTEST_FRAME) and not _deflated(dataset):
        reason = f"is damaged DICOM (it states {count} frames in {path.stat().st_size} bytes)"
        raise UnreadableImage(path, reason, "Export it again.")
    return count


def _deflated(dataset: Dataset) -> bool:
    return dataset.file_meta.get("TransferSyntaxUID") == _DEFLATED


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that is too large once inflated, without holding it in memory.

    Raises:
        UnreadableImage: if it is too large.
    """
    from pydicom.filereader import read_file_meta_info

    with path.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            return
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != _DEFLATED:
            return
        stream.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        if inflated_size(stream, _LONGEST_INFLATED, -zlib.MAX_WBITS)[0] > _LONGEST_INFLATED:
            reason = f"is deflated and exceeds {_LONGEST_INFLATED >> 20} MiB once inflated"
            raise UnreadableImage(path, reason, "Export it uncompressed.")


def _check(path: Path, dataset: Dataset) -> None:
    if dataset.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        raise NotAnImage(path, "is a DICOMDIR, an index of other files", "Give the folder that it indexes.")
    modality = str(dataset.get("Modality", "") or "")
    if modality in _NOT_PICTURES:
        remedy = "Give the image it refers to."
        raise NotAnImage(path, f"holds no image ({_NOT_PICTURES[modality]})", remedy)
    if "PixelData" not in dataset:
        raise NotAnImage(path, "holds no image (it has no pixel data)", "Give an image object.")
    _complete(dataset)
    needed = ["Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "BitsStored", "PixelRepresentation"]
    needed += ["PlanarConfiguration"] if _is_plain(dataset) and int(dataset.get("SamplesPerPixel", 1) or 1) > 1 else []
    # treat zero rows as missing; a planar configuration of zero is valid
    zero = {"PixelRepresentation", "PlanarConfiguration"}
    values = {keyword: dataset.get(keyword) for keyword in needed}
    missing = [k for k, value in values.items() if value is None or value == "" or (value == 0 and k not in zero)]
    if missing:
        raise UnreadableImage(path, f"is damaged DICOM ({', '.join(missing)} missing)", "Export it again.")
    if min(int(dataset.Rows), int(dataset.Columns)) < 2:
        reason = f"is not a 2D image ({dataset.Rows} x {dataset.Columns})"
        raise UnreadableImage(path, reason, "Give a 2D image.")
    count_dicom_frames(path, dataset)


def _complete(dataset: Dataset) -> None:
    """Fill in missing attributes that have only one possible value; treat empty ones as absent."""
    rescaled = [name for name in ("RescaleSlope", "RescaleIntercept") if dataset.get(name) not in (None, "")]
    default: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": 0}
    for name in default:
        if name in dataset and name not in rescaled:
            del dataset[name]
        if rescaled and name not in rescaled:
            setattr(dataset, name, default[name])
    photometric = str(dataset.get("PhotometricInterpretation", "") or "")
    if photometric and not dataset.get("SamplesPerPixel"):
        gray = photometric.startswith("MONOCHROME") or photometric == "PALETTE COLOR"
        dataset.SamplesPerPixel = 1 if gray else 3
    bits = dataset.get("BitsAllocated")
    if not dataset.get("BitsStored"):
        if dataset.get("HighBit"):
            dataset.BitsStored = int(dataset.HighBit) + 1
        elif bits == 8:
            dataset.BitsStored = 8
    if dataset.get("PixelRepresentation") is None and (bits == 8 or (dataset.get("SamplesPerPixel") or 1) > 1):
        dataset.PixelRepresentation = 0


def _swap_tables(dataset: Dataset) -> None:
    """Bring lookup tables of a big-endian file, which pydicom leaves as bytes, into little-endian order."""
    for element in dataset.iterall():
        if element.keyword.endswith(("LUTData", "LookupTableData")) and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()


def use_functional_groups(dataset: Dataset, frame: int) -> None:
    """Let what an enhanced object says of a frame (rescaling, window, pixel spacing) count as its header.

    Args:
        dataset: header, changed in place.
        frame: index, from 0.
    """
    for sequence, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        groups = dataset.get(sequence)
        for name in _OF_PICTURES if groups and index < len(groups) else ():
            for element in (groups[index].get(name) or [()])[0]:
                dataset[element.tag] = element


def _is_plain(dataset: Dataset) -> bool:
    """Tell whether the pixel data are uncompressed."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    return syntax is None or not getattr(syntax, "is_compressed", False)
