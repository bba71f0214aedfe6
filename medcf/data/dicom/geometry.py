# SPDX-License-Identifier: Apache-2.0
"""DICOM geometry: the pixel spacing of a picture, and the slice positions of a series.

Slices are placed by ImagePositionPatient and ImageOrientationPatient only (PS3.3 C.7.6.2.1.1); SliceThickness, instance
number and file names are not reliable. The step between slices need not be perpendicular to them: a tilted gantry
shears the affine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medcf.runtime.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["SlicePlace", "arrange", "calibration"]

logger = logging.getLogger(__name__)

Spacing = tuple[float, float]
Region = tuple[int, int, int, int]

_CENTIMETERS = 3  # physical units code, PS3.3 C.8.5.5.1.15
_SPATIAL_2D = 1  # region spatial format, C.8.5.5.1.1
_TISSUE = 1  # region data type, C.8.5.5.1.2
_TOLERANCE = 2  # pixels by which regions may extend beyond the matrix


def calibration(dataset: Dataset) -> tuple[Spacing | None, Region | None, str]:
    """Find the pixel spacing and the region of the picture.

    Takes the largest 2D region of SequenceOfUltrasoundRegions that is calibrated in centimeters, preferring tissue
    (PS3.3 C.8.5.5); otherwise PixelSpacing, ImagerPixelSpacing or NominalScannedPixelSpacing. A region that exceeds the
    matrix in both directions was written for another matrix (the image was scaled afterward), so its spacing is not
    used; one that exceeds it in one direction belongs to a cropped image, and its spacing is used.

    Args:
        dataset: header with Rows and Columns.

    Returns:
        Millimeters between (rows, columns) or None; (first row, first column, end row, end column) or None; and a
        note, empty if nothing is unusual.
    """
    found = _ultrasound_region(dataset)
    if found is None:
        return _plain_spacing(dataset), None, ""
    spacing, (top, left, bottom, right) = found
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if bottom > rows + _TOLERANCE and right > columns + _TOLERANCE:
        note = "its ultrasound region is larger than the image, which was scaled afterward: pixel spacing unknown"
        return None, None, note
    region = (max(top, 0), max(left, 0), min(bottom, rows), min(right, columns))
    if region[2] - region[0] < 2 or region[3] - region[1] < 2:
        return spacing, None, "its ultrasound region lies outside the image and is ignored"
    return spacing, region, ""


def _ultrasound_region(dataset: Dataset) -> tuple[Spacing, Region] | None:
    best: tuple[tuple[bool, int], Spacing, Region] | None = None
    for item in dataset.get("SequenceOfUltrasoundRegions", None) or []:
        units = (item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection"))
        spacing = _positive(item.get("PhysicalDeltaY"), item.get("PhysicalDeltaX"), scale=10.0)
        if item.get("RegionSpatialFormat") != _SPATIAL_2D or units != (_CENTIMETERS, _CENTIMETERS) or spacing is None:
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


_SAME_DIRECTION = 1e-3  # direction cosines are written with few digits
_SAME_PLACE = 1e-3  # mm
_EVEN, _UNEVEN = 0.02, 0.2  # fraction of the step: deviations that are warned about and refused
_FEW = 0.25  # fraction of slices that may be localizers


@dataclass(frozen=True)
class SlicePlace:
    """One slice: a file, or a frame of a file.

    Attributes:
        path: the file.
        frame: index of the frame.
        size: rows and columns.
        position: center of its first pixel, in mm, LPS+.
        rows: unit vector, LPS+, along a row (toward increasing column index).
        columns: unit vector, LPS+, along a column.
        spacing: mm between rows and between columns.
    """

    path: Path
    frame: int
    size: tuple[int, int]
    position: NDArray[np.float64]
    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    spacing: tuple[float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the slice."""
        return np.cross(self.rows, self.columns)


def arrange(slices: Sequence[SlicePlace]) -> tuple[list[SlicePlace], NDArray[np.float64]]:
    """Sort the slices of a series by position and check that they form one volume.

    A few slices with another orientation are assumed to be localizers and dropped, and so are duplicate slices; the log
    reports both.

    Returns:
        The slices sorted along their normal, and the affine from (column, row, slice) indices to RAS+ mm.

    Raises:
        UnreadableImage: if they differ in orientation, size or pixel spacing, share a position, or if slices are
            missing or spaced unevenly by more than a fifth of the step.
    """
    kept = _one_orientation(_without_copies(slices))
    first = kept[0]
    for other in kept[1:]:
        if other.size != first.size or not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            reason = f"differs in size or pixel spacing from {first.path.name} of the same series"
            raise UnreadableImage(other.path, reason, "Give the slices of one acquisition only.")
    if len(kept) < 2:
        raise UnreadableImage(first.path, "is a single slice, not a volume", "Give all slices of the series.")
    kept = sorted(kept, key=lambda one: float(one.position @ first.normal))
    return kept, _affine(kept, _step(kept))


def _without_copies(slices: Sequence[SlicePlace]) -> list[SlicePlace]:
    """Drop duplicates: same pixels, same position. Instance UIDs do not help; some tools repeat one."""
    places: dict[tuple[float, ...], list[SlicePlace]] = {}
    copies: list[SlicePlace] = []
    for one in slices:
        there = places.setdefault((*one.position.round(3), *one.normal.round(3)), [])
        # compare with the first slice only: time points can share a position without being duplicates
        if there and there[0].path != one.path and _pixel_data(one) == _pixel_data(there[0]):
            copies.append(one)
        else:
            there.append(one)
    if copies:
        logger.warning("%d duplicate slices are left out, %s first", len(copies), copies[0].path.name)
    return [one for there in places.values() for one in there]


def _pixel_data(one: SlicePlace) -> tuple[bytes, int]:
    """Return the stored pixels of a slice's file, and the index of its frame."""
    import pydicom

    return pydicom.dcmread(one.path, force=True, specific_tags=["PixelData"]).PixelData, one.frame


def _one_orientation(slices: Sequence[SlicePlace]) -> list[SlicePlace]:
    """Keep the slices with the most common orientation."""
    groups: list[list[SlicePlace]] = []
    for one in slices:
        for group in groups:
            turned = max(np.abs(one.rows - group[0].rows).max(), np.abs(one.columns - group[0].columns).max())
            if turned < _SAME_DIRECTION:
                group.append(one)
                break
        else:
            groups.append([one])
    groups.sort(key=len, reverse=True)
    others = [one for group in groups[1:] for one in group]
    if others and len(others) > _FEW * len(slices):
        reason = f"is one of {len(slices)} slices in {len(groups)} orientations (such as a rotating view), not a volume"
        raise UnreadableImage(others[0].path, reason, "Give the slices of one orientation only.")
    if others:
        logger.warning(
            "%d slices with another orientation (localizers) are left out, %s first", len(others), others[0].path.name
        )
    return groups[0]


def _step(slices: Sequence[SlicePlace]) -> NDArray[np.float64]:
    """Return the vector (mm, LPS+) from one slice to the next.

    Raises:
        UnreadableImage: if the slices are not evenly spaced.
    """
    normal = slices[0].normal
    places = np.array([one.position for one in slices])
    heights = places @ normal
    gaps = np.diff(heights)
    tight = int(gaps.argmin())
    if gaps[tight] < _SAME_PLACE:
        reason = f"has the same position as {slices[tight].path.name}: several echoes, time points or series are mixed"
        if slices[tight].path == slices[tight + 1].path:
            reason = "holds several frames at the same position: several echoes, time points or stacks"
        raise UnreadableImage(slices[tight + 1].path, reason, "Give one echo or time point only.")
    usual, wide = float(np.median(gaps)), int(gaps.argmax())
    missing = round(gaps[wide] / usual) - 1
    if missing > 0 and gaps[wide] > 1.5 * usual:
        between = f"{slices[wide].path.name} and {slices[wide + 1].path.name}"
        reason = f"does not follow its neighbor: about {missing} slices are missing between {between}"
        raise UnreadableImage(slices[wide + 1].path, reason, "Export the complete series again.")
    step = (places[-1] - places[0]) / (len(slices) - 1)
    expected = places[0] + np.arange(len(slices))[:, None] * step
    off = np.linalg.norm(places - expected, axis=1)
    worst = int(off.argmax())
    share = float(off[worst]) / float(np.linalg.norm(step))
    if share > _UNEVEN:
        reason = f"lies {off[worst]:.2f} mm off the regular spacing of its series"
        raise UnreadableImage(slices[worst].path, reason, "Resample the series to evenly spaced slices first.")
    if share > _EVEN:
        logger.warning("%s lies %.2f mm off the regular spacing that is assumed", slices[worst].path.name, off[worst])
    tilt = math.degrees(math.acos(min(1.0, abs(float(step @ normal)) / float(np.linalg.norm(step)))))
    if tilt > 0.1:
        logger.info("%s: the slices are sheared by a gantry tilt of %.1f degrees", slices[0].path.name, tilt)
    return step


def _affine(slices: Sequence[SlicePlace], step: NDArray[np.float64]) -> NDArray[np.float64]:
    first = slices[0]
    affine = np.eye(4)
    # the column index increases along a row
    affine[:3, 0] = first.rows * first.spacing[1]
    affine[:3, 1] = first.columns * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
