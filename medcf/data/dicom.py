# SPDX-License-Identifier: Apache-2.0
"""Reads one frame of a DICOM image: ultrasound foremost, other modalities with a warning.

Pixel data are decoded by pydicom with the plugins that are installed; color spaces, palettes, MONOCHROME1, modality
and VOI transformations are applied in the order of DICOM PS3.4 N.2, so that 0 is black and 1 is white. Messages hold no
attribute that could identify a patient.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medcf.data.dicom_geometry import calibration
from medcf.data.image import Pixels, picture_affine
from medcf.runtime.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "VOLUME_MODALITIES",
    "count_dicom_frames",
    "decode_frame",
    "discreet",
    "holds_volume",
    "looks_like_dicom",
    "open_dicom",
    "read_dicom",
]

logger = logging.getLogger(__name__)

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
VOLUME_MODALITIES = ("CT", "MR", "PT", "NM")
_ENHANCED_US_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
_DIRECTORY = "1.2.840.10008.1.3.10"
_PLUGIN_OF = {
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.90": "pillow",
    "1.2.840.10008.1.2.4.91": "pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}


def looks_like_dicom(head: bytes) -> bool:
    """Tell from the first 132 bytes: the preamble's mark, or a bare data set that starts with group 0002 or 0008."""
    if head[128:132] == b"DICM":
        return True
    return head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) >= 16


@contextmanager
def discreet() -> Iterator[None]:
    """Keep pydicom's warnings from the terminal and the logs: they quote values of the header, such as names."""
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
    """Parse the header (pixel data are left in the file) and check that it describes an image.

    Args:
        path: the file, with or without preamble.

    Raises:
        UnreadableImage: if the file is damaged or no image.
    """
    import pydicom

    try:
        with discreet():
            dataset = pydicom.dcmread(path, force=True, defer_size=1024)
            _check(path, dataset)
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
    """Number of frames that the header states.

    Raises:
        UnreadableImage: if it is not a positive number.
    """
    try:
        count = int(dataset.get("NumberOfFrames", None) or 1)
    except (TypeError, ValueError) as error:
        raise UnreadableImage(path, "is damaged DICOM (its number of frames)", "Export it again.") from error
    if count < 1:
        raise UnreadableImage(path, "is damaged DICOM (its number of frames)", "Export it again.")
    return count


@discreet()
def read_dicom(path: Path, frame: int = 0) -> Pixels:
    """Read one frame.

    Args:
        path: the file, with or without preamble.
        frame: index, from 0.

    Raises:
        UnreadableImage: if the file is damaged, no image or a volume, has no such frame, or needs a decoder that is not
            installed (the message names it).
    """
    dataset = open_dicom(path)
    num_frames = count_dicom_frames(path, dataset)
    modality = str(dataset.get("Modality", "") or "")
    if modality not in ("US", "IVUS", "OT", "SC", ""):
        logger.warning("%s is not an ultrasound image (modality %s); it is read all the same", path.name, modality)
    with np.errstate(all="ignore"):
        stored = decode_frame(path, dataset, frame)
        try:
            array, value_range = _to_display(stored, dataset)
            spacing, region, note = calibration(dataset)
        except Exception as error:
            raise UnreadableImage(path, f"is damaged DICOM ({type(error).__name__})", "Export it again.") from error
    if note:
        logger.warning("%s: %s", path.name, note)
    if region is not None:
        top, left, bottom, right = region
        region = (left, top, right, bottom)
    return Pixels(
        array=array[None].swapaxes(1, 2) if array.ndim == 2 else array.transpose(2, 1, 0),
        affine=None if spacing is None else picture_affine(spacing[::-1]),
        source_format="dicom",
        value_range=value_range,
        region=region,
        frame=frame,
        num_frames=num_frames,
        modality=modality,
    )


def _check(path: Path, dataset: Dataset) -> None:
    if dataset.file_meta.get("MediaStorageSOPClassUID") == _DIRECTORY:
        raise UnreadableImage(path, "is a DICOMDIR, an index of other files", "Give the folder that it indexes.")
    modality = str(dataset.get("Modality", "") or "")
    if modality in _NOT_PICTURES:
        remedy = "Give the image that it refers to."
        raise UnreadableImage(path, f"holds no image but {_NOT_PICTURES[modality]}", remedy)
    if "PixelData" not in dataset:
        raise UnreadableImage(path, "holds no image (there are no pixel data)", "Give an image object.")
    missing = [k for k in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if not dataset.get(k)]
    if missing:
        raise UnreadableImage(path, f"is damaged DICOM ({', '.join(missing)} missing)", "Export it again.")
    if min(int(dataset.Rows), int(dataset.Columns)) < 2:
        raise UnreadableImage(path, f"has the wrong dimension: {dataset.Rows} x {dataset.Columns}", "Give a 2D image.")
    count_dicom_frames(path, dataset)


def decode_frame(path: Path, dataset: Dataset, frame: int) -> NDArray[np.generic]:
    """Decode one frame to the stored values (H, W) or (H, W, 3); YBR becomes RGB here.

    Raises:
        UnreadableImage: if the pixel data are damaged, or need a decoder that is not installed.
    """
    from pydicom.pixels import pixel_array
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # the file meta group is missing: the encoding of the elements tells the uncompressed syntaxes
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    try:
        # J2K decoders apply the reversible and irreversible color transforms themselves
        array = pixel_array(dataset, index=frame)
    except Exception as error:
        plugin = _PLUGIN_OF.get(str(syntax))
        if plugin and _unsupported(error):
            reason = f"is compressed with {syntax.name}, which no installed decoder reads"
            raise UnreadableImage(path, reason, f"Run: python -m pip install {plugin}") from error
        if _unsupported(error):
            reason = f"is compressed with {syntax.name}, which cannot be decoded here"
            raise UnreadableImage(path, reason, "Export it uncompressed.") from error
        reason = f"cannot be decoded: truncated or damaged pixel data ({type(error).__name__})"
        raise UnreadableImage(path, reason, "Export it again.") from error
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3):
        shape = " x ".join(map(str, array.shape))
        raise UnreadableImage(path, f"has the wrong dimension: a frame is {shape}", "Give a 2D image.")
    return array


def _unsupported(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or "missing dependencies" in text or "is not supported" in text


def _to_display(stored: NDArray[np.generic], dataset: Dataset) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Apply palette, modality and VOI transformation; return pixels in [0, 1] and the values that became 0 and 1."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colored = apply_color_lut(stored, dataset)
        top = 255.0 if colored.dtype == np.uint8 else 65535.0
        return _gray_if_colorless(colored[..., :3].astype(np.float32) / top), (math.nan, math.nan)
    bits = int(dataset.get("BitsStored", 0) or dataset.BitsAllocated)
    signed = int(dataset.get("PixelRepresentation", 0) or 0) == 1
    if stored.ndim == 3:
        top = float(2**bits - 1)
        return _gray_if_colorless(np.clip(stored.astype(np.float32) / top, 0, 1)), (0.0, top)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    voi = _apply_voi(values, dataset)
    if voi is not None:
        array, (low, high) = voi
    elif not signed and bits <= 8 and "ModalityLUTSequence" not in dataset:
        slope, intercept = float(dataset.get("RescaleSlope", 1) or 1), float(dataset.get("RescaleIntercept", 0) or 0)
        low, high = intercept, slope * (2**bits - 1) + intercept
        array = (values - low) / (high - low)
    else:
        low, high = float(values.min()), float(values.max())
        array = (values - low) / max(high - low, 1e-12)
    shown = np.clip(array, 0, 1).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        return 1 - shown, (high, low)
    return shown, (low, high)


def _apply_voi(values: NDArray[np.float64], dataset: Dataset) -> tuple[NDArray[np.float64], tuple[float, float]] | None:
    """Apply the first VOI lookup table or window of the header; None if it has none that is valid."""
    from pydicom.pixels import apply_voi, apply_windowing

    try:
        if dataset.get("VOILUTSequence"):
            top = 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
            return apply_voi(values.astype(np.int64), dataset).astype(np.float64) / top, (math.nan, math.nan)
        if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
            # far below and far above the window lie the ends of the scale onto which pydicom stretches it
            low, high = apply_windowing(np.array([-1e9, 1e9]), dataset)
            array = (apply_windowing(values, dataset) - low) / (high - low)
            center, width = (float(np.ravel(dataset[k].value)[0]) for k in ("WindowCenter", "WindowWidth"))
            return array, (center - width / 2, center + width / 2)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        logger.warning("the window in the header is not valid (%s); the whole range is shown", type(error).__name__)
    return None


def _gray_if_colorless(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Most ultrasound is stored as RGB with three equal channels: one is enough."""
    if (array[..., 0] == array[..., 1]).all() and (array[..., 1] == array[..., 2]).all():
        return array[..., 0]
    return array
