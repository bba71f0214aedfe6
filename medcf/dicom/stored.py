# SPDX-License-Identifier: Apache-2.0
"""The way back from values that were read to the stored ones, through whatever tables the header applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.dicom.lut import padding_of, rescale, to_display

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["EIGHT_BITS", "Scale", "picture_scale", "volume_scale"]

_WIDEST = 16  # bits whose values can all be listed


@dataclass(frozen=True, eq=False)
class Scale:
    """Stored values and what they stand for.

    Attributes:
        values: (N,) ascending, no two are equal.
        codes: (N,) the stored value of each.
    """

    values: NDArray[np.float64]
    codes: NDArray[Any]

    @classmethod
    def of(cls, codes: NDArray[Any], values: NDArray[Any]) -> Scale:
        """Order a table by its values. Of all codes that are shown black or white, keep the one next to the others.

        Args:
            codes: (N,) ascending.
            values: (N,) what they stand for.
        """
        different, first = np.unique(values, return_index=True)
        last = len(values) - 1 - np.unique(values[::-1], return_index=True)[1]
        chosen = codes[first]
        for end, inner in ((0, 1), (-1, -2)) if len(different) > 1 else ():
            near = [int(codes[place[end]]) for place in (first, last)]
            chosen[end] = min(near, key=lambda code: abs(code - int(codes[first[inner]])))
        return cls(different.astype(np.float64), chosen)

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the stored value whose meaning is nearest to each of ``values``, of any shape."""
        if len(self.values) == 1:
            return np.full(values.shape, self.codes[0])
        above = np.clip(np.searchsorted(self.values, values), 1, len(self.values) - 1)
        lower = np.abs(values - self.values[above - 1]) <= np.abs(self.values[above] - values)
        return self.codes[above - lower]


EIGHT_BITS = Scale(np.arange(256) / 255, np.arange(256, dtype=np.uint8))
"""Gray values from 0 to 1 in eight bits, for what was in color."""


def picture_scale(header: Dataset, stored: NDArray[Any]) -> Scale:
    """Return the scale of a grayscale picture, whose values are 0 for black and 1 for white.

    Args:
        header: of the picture; its modality and VOI tables, window and inversion count.
        stored: (rows, columns) the picture's stored values. Without a window they set its range.
    """
    shown = to_display(stored, header)[0]
    if int(header.BitsStored) <= _WIDEST:
        codes = _all_codes(header, stored)
        values = to_display(codes[None], header)[0][0]
        place = stored.astype(np.int64) - int(codes[0])
        if place.min() >= 0 and place.max() < len(codes) and np.allclose(values[place], shown, atol=1e-6):
            return _without_padding(codes, values, header)
    codes = np.unique(stored)
    if int(codes[-1]) - int(codes[0]) < 2**_WIDEST:
        codes = np.arange(int(codes[0]), int(codes[-1]) + 1, dtype=stored.dtype)
    return _without_padding(codes, to_display(codes[None], header)[0][0], header)


def volume_scale(header: Dataset, group: Dataset, stored: NDArray[Any]) -> Scale:
    """Return the scale of a slice in its own units.

    Args:
        header: of the slice's file.
        group: what holds the slice's rescaling: the header, or one of its functional groups.
        stored: (rows, columns) the slice's stored values.
    """
    codes = _all_codes(header, stored) if int(header.BitsStored) <= _WIDEST else np.unique(stored)
    return _without_padding(codes, rescale(codes, group).astype(np.float32), header)


def _all_codes(header: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    """Return every value that can be stored, in the type of those that are."""
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    limits = np.iinfo(stored.dtype)
    return np.arange(max(low, limits.min), min(high, limits.max) + 1).astype(stored.dtype)


def _without_padding(codes: NDArray[Any], values: NDArray[Any], header: Dataset) -> Scale:
    """Leave out the stored values that mean that there is no measurement."""
    outside = padding_of(codes, header)
    if outside is not None and not outside.all():
        codes, values = codes[~outside], values[~outside]
    return Scale.of(codes, values)
