# SPDX-License-Identifier: Apache-2.0
"""Converts stored values to display values, 0 black and 1 white, in the order of DICOM PS3.4 N.2.

Lookup tables are interpreted by their contents. Descriptors that state a bit depth other than that of the entries,
entries packed two per word, and signed first values written as unsigned are all common, and pydicom's functions trust
the descriptor on all three.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["InvalidHeader", "padding_of", "rescale", "to_display"]

logger = logging.getLogger(__name__)

Range = tuple[float, float]
_UNKNOWN: Range = (math.nan, math.nan)  # a lookup table maps the stored values, so no range applies


class InvalidHeader(ValueError):  # noqa: N818 - the name says what is wrong
    """An inconsistent header. The message quotes no value that could identify a patient."""


def to_display(stored: NDArray[np.generic], dataset: Dataset) -> tuple[NDArray[np.float32], Range]:
    """Apply the palette, modality and VOI transforms.

    Args:
        stored: (H, W) or (H, W, 3), from `medcf.data.dicom.decoder.decode_frame`.
        dataset: the header.

    Returns:
        (H, W) or (H, W, 3) in [0, 1]; the rescaled values that map to 0 and 1.

    Raises:
        InvalidHeader: if the header is inconsistent; the message says what is wrong.
    """
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _gray_if_colorless(_palette(stored, dataset)), _UNKNOWN
    bits = int(dataset.BitsStored)
    signed = int(dataset.PixelRepresentation) == 1
    if stored.ndim == 3:
        top = float(2**bits - 1)
        return _gray_if_colorless(np.clip(stored.astype(np.float32) / top, 0, 1)), (0.0, top)
    values, inverted = rescale(stored, dataset), dataset.PhotometricInterpretation == "MONOCHROME1"
    if (outside := padding_of(stored, dataset)) is not None and not outside.all():
        values[outside] = values[~outside].max() if inverted else values[~outside].min()
    shown = _voi_table(values, dataset) or _window(values, dataset)
    if shown is None and not signed and bits <= 8 and not dataset.get("ModalityLUTSequence"):
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        shown = _stretch(values, sorted((intercept, slope * (2**bits - 1) + intercept)))
    elif shown is None:
        shown = _stretch(values, (float(values.min()), float(values.max())))
    array, (low, high) = shown
    picture: NDArray[np.float32] = np.clip(array, 0, 1).astype(np.float32)
    return (np.float32(1) - picture, (high, low)) if inverted else (picture, (low, high))


def rescale(stored: NDArray[np.generic], dataset: Dataset) -> NDArray[np.float64]:
    """Apply the modality lookup table or the rescaling from a header or a functional group.

    Raises:
        InvalidHeader: if the slope is 0 or a table is empty.
    """
    if tables := dataset.get("ModalityLUTSequence"):
        first, entries = _table(tables[0].get("LUTDescriptor"), tables[0].get("LUTData"), stored.dtype.kind == "i")
        return _look_up(stored, first, entries).astype(np.float64)
    slope, intercept = (dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope in (None, "") else float(slope), float(intercept or 0)
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise InvalidHeader(f"its RescaleSlope is {slope:g}")
    return stored.astype(np.float64) * slope + intercept


def padding_of(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_] | None:
    """Find the pixels outside the field of view (PixelPaddingValue, PS3.3 C.7.5.1.1.2), which hold no measurement.

    Args:
        stored: as decoded.
        dataset: the header.

    Returns:
        bool with the shape of ``stored``; None if no pixel is padding.
    """
    padding, end = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(padding, int | float):
        return None
    ends = [padding, end if isinstance(end, int | float) else padding]
    if stored.dtype.kind == "i":  # signed values may be written as unsigned
        ends = [each - (2**16 if each > np.iinfo(np.int16).max else 0) for each in ends]
    outside = (stored >= min(ends)) & (stored <= max(ends))
    return outside if outside.any() else None


def _table(descriptor: Any, data: Any, signed: bool) -> tuple[int, NDArray[np.uint16]]:
    """Read a lookup table: the first value it maps, and its entries.

    Raises:
        InvalidHeader: if it is empty.
    """
    if not descriptor or len(descriptor) != 3 or data is None or len(data) == 0:
        raise InvalidHeader("its lookup table is empty")
    count, first, _ = (int(number) for number in descriptor)
    count = count or 2**16
    first -= 2**16 if signed and first >= 2**15 else 0
    if isinstance(data, bytes):
        packed = len(data) < 2 * count  # one byte per entry
        entries = np.frombuffer(data[: len(data) // 2 * 2 if not packed else None], np.uint8 if packed else "<u2")
    else:
        entries = np.asarray(data, dtype=np.int64).astype(np.uint16)
        if len(entries) == (count + 1) // 2 < count:  # two 8-bit entries per word, the first in the lower byte
            entries = entries.astype("<u2").view(np.uint8)
    return first, entries[:count].astype(np.uint16)


def _look_up(values: NDArray[Any], first: int, entries: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)]


def _top(descriptor: Any, entries: NDArray[np.uint16]) -> float:
    """Return the largest value that entries can have, given the stated bit depth or the one actually used."""
    claimed, largest = int(descriptor[2]), int(entries.max())
    used = max(largest.bit_length(), 1)
    # a table need not reach its maximum, but one that ends at all ones, or leaves two bits unused, has fewer bits
    fewer = used < claimed and (largest == 2**used - 1 or used < claimed - 1)
    return float(2 ** (used if fewer or used > claimed else claimed) - 1)


def _voi_table(values: NDArray[np.float64], dataset: Dataset) -> tuple[NDArray[np.float64], Range] | None:
    """Apply the first non-empty VOI lookup table; None if there is none."""
    signed = int(dataset.PixelRepresentation) == 1 or bool(values.min() < 0)
    for item in dataset.get("VOILUTSequence") or ():
        try:
            first, entries = _table(item.get("LUTDescriptor"), item.get("LUTData"), signed)
        except (TypeError, ValueError):
            continue
        return _look_up(values, first, entries) / _top(item.LUTDescriptor, entries), _UNKNOWN
    return None


def _window(values: NDArray[np.float64], dataset: Dataset) -> tuple[NDArray[np.float64], Range] | None:
    """Apply the first window in the header; None if it has no valid one."""
    from pydicom.pixels import apply_windowing

    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return None
    try:
        # pydicom stretches to a scale, whose ends are reached far below and far above the window
        low, high = apply_windowing(np.array([-1e15, 1e15]), dataset)
        array = (apply_windowing(values, dataset) - low) / (high - low)
        center, width = (float(np.ravel(dataset[k].value)[0]) for k in ("WindowCenter", "WindowWidth"))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        logger.warning("the window in the header is invalid (%s); showing the full range", type(error).__name__)
        return None
    if not np.isfinite(array).all():
        logger.warning("the window in the header is invalid; showing the full range")
        return None
    return array, (center - width / 2, center + width / 2)


def _stretch(values: NDArray[np.float64], ends: Any) -> tuple[NDArray[np.float64], Range]:
    low, high = ends
    return (values - low) / max(high - low, 1e-12), (low, high)


def _palette(stored: NDArray[np.generic], dataset: Dataset) -> NDArray[np.float32]:
    """Convert palette indices to color (H, W, 3) in [0, 1]."""
    from pydicom.pixels import apply_color_lut

    names = [f"{color}PaletteColorLookupTable" for color in ("Red", "Green", "Blue")]
    if f"{names[0]}Data" not in dataset:  # the tables are segmented
        colored = apply_color_lut(stored, dataset)[..., :3]
        return colored.astype(np.float32) / np.float32(np.iinfo(colored.dtype).max)
    signed = stored.dtype.kind == "i"
    described = [(dataset.get(f"{name}Descriptor"), dataset.get(f"{name}Data")) for name in names]
    tables = [_table(descriptor, data, signed) for descriptor, data in described]
    # one scale for all colors, 8 or 16 bits
    top = 255.0 if max(int(entries.max()) for _, entries in tables) < 256 else 65535.0
    colored = np.stack([_look_up(stored, *table) for table in tables], axis=-1)
    return colored.astype(np.float32) / np.float32(top)


def _gray_if_colorless(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce three equal channels to one: most ultrasound is gray but stored as RGB."""
    if (array[..., 0] == array[..., 1]).all() and (array[..., 1] == array[..., 2]).all():
        return array[..., 0]
    return array
