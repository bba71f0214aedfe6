# SPDX-License-Identifier: Apache-2.0
"""Millimetres per pixel and the picture proper, from the header of a 2D DICOM image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["calibration"]

Spacing = tuple[float, float]
Region = tuple[int, int, int, int]

_CENTIMETRES = 3  # physical units code, PS3.3 C.8.5.5.1.15
_SPATIAL_2D = 1  # region spatial format, C.8.5.5.1.1
_TISSUE = 1  # region data type, C.8.5.5.1.2
_TOLERANCE = 2  # pixels by which scanners overshoot the matrix


def calibration(dataset: Dataset) -> tuple[Spacing | None, Region | None, str]:
    """Find the pixel spacing and the region of the picture.

    The largest 2D region of SequenceOfUltrasoundRegions in centimetres is taken, tissue before others (PS3.3 C.8.5.5);
    without one, PixelSpacing, ImagerPixelSpacing or NominalScannedPixelSpacing. A region that sticks out of the matrix
    in both directions was written for another matrix (the image was scaled afterwards), so its spacing is not used; one
    that sticks out in one direction belongs to a cropped image and keeps it.

    Args:
        dataset: header with Rows and Columns.

    Returns:
        Millimetres between (rows, columns) or None; (first row, first column, end row, end column) or None; and a
        remark, empty if nothing was odd.
    """
    found = _ultrasound_region(dataset)
    if found is None:
        return _plain_spacing(dataset), None, ""
    spacing, (top, left, bottom, right) = found
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if bottom > rows + _TOLERANCE and right > columns + _TOLERANCE:
        note = "its ultrasound region is larger than the image, which was scaled afterwards: pixel spacing unknown"
        return None, None, note
    region = (max(top, 0), max(left, 0), min(bottom, rows), min(right, columns))
    if region[2] - region[0] < 2 or region[3] - region[1] < 2:
        return spacing, None, "its ultrasound region lies outside of the image and is ignored"
    return spacing, region, ""


def _ultrasound_region(dataset: Dataset) -> tuple[Spacing, Region] | None:
    best: tuple[tuple[bool, int], Spacing, Region] | None = None
    for item in dataset.get("SequenceOfUltrasoundRegions", None) or []:
        units = (item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection"))
        spacing = _positive(item.get("PhysicalDeltaY"), item.get("PhysicalDeltaX"), scale=10.0)
        if item.get("RegionSpatialFormat") != _SPATIAL_2D or units != (_CENTIMETRES, _CENTIMETRES) or spacing is None:
            continue
        corners = [item.get(f"RegionLocation{k}") for k in ("MinY0", "MinX0", "MaxY1", "MaxX1")]
        if any(c is None for c in corners):
            continue
        top, left, bottom, right = (int(c) for c in corners)
        area = max(bottom - top, 0) * max(right - left, 0)
        rank = (item.get("RegionDataType") == _TISSUE, area)
        if area and (best is None or rank > best[0]):
            best = rank, spacing, (top, left, bottom + 1, right + 1)
    return None if best is None else best[1:]


def _plain_spacing(dataset: Dataset) -> Spacing | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = dataset.get(keyword)
        if values is not None and not isinstance(values, str) and len(values) == 2:
            spacing = _positive(*values)
            if spacing is not None:
                return spacing
    return None


def _positive(row: object, column: object, scale: float = 1.0) -> Spacing | None:
    try:
        values = abs(float(row)) * scale, abs(float(column)) * scale  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return values if all(math.isfinite(v) and v > 0 for v in values) else None
