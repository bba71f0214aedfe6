# SPDX-License-Identifier: Apache-2.0
"""Reads 2D NIfTI files.

The convention is ITK's: array axis 0 holds the columns (x) and axis 1 the rows (y) of the picture, LPS +x to the right
and +y down, so a picture ``p`` is stored as ``p.T`` with the affine ``diag(-column_mm, -row_mm, 1, 1)``. Axes that the
affine turns or mirrors are turned back. An affine that is exactly the identity is what a writer leaves that knows no
geometry: the axes are then taken as stored and the spacing counts as unknown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcf.data.pixels import Pixels
from medcf.runtime.errors import UnreadableImage

__all__ = ["read_nifti"]


def check_nifti(path: Path) -> None:
    """Check from the header that the file holds one plane.

    Raises:
        UnreadableImage: if it is damaged, a volume, or a time series.
    """
    _plane_axes(path, _load(path).shape)


def read_nifti(path: Path) -> Pixels:
    """Read a plane: (X, Y), or with further axes of which all but two have length 1; grey or RGB.

    Intensities: uint8, and anything within [0, 255] that exceeds 1, is divided by 255; values within [0, 1] stay; the
    rest is stretched from its minimum to its maximum.

    Raises:
        UnreadableImage: if it is damaged, a volume, or a time series.
    """
    import nibabel as nib

    image = _load(path)
    first, second = _plane_axes(path, image.shape)
    try:
        stored = np.asarray(image.dataobj)
        affine = np.eye(4) if image.affine is None else np.asarray(image.affine, dtype=np.float64)
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error
    plane = stored.reshape(stored.shape[first], stored.shape[second])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        affine = np.eye(4)
    known = not np.array_equal(affine, np.eye(4))
    affine = affine[:, _third_last(first, second)]
    orientation = nib.orientations.io_orientation(affine)
    array, to_picture = _upright(plane, affine, orientation) if known else (plane.T, affine[:, [1, 0, 2, 3]])
    spacing = tuple(float(v) for v in np.linalg.norm(to_picture[:3, :2], axis=0)) if known else None
    values, value_range = _scale(array)
    return Pixels(
        array=values,
        spacing=spacing,  # type: ignore[arg-type]
        source_format="nifti",
        photometric=str(stored.dtype) if stored.dtype.names is None else "RGB",
        affine=to_picture if known else None,
        value_range=value_range,
    )


def _load(path: Path) -> Any:
    import nibabel as nib

    try:
        return nib.load(path)
    except Exception as error:
        raise UnreadableImage(path, f"is a damaged NIfTI file ({type(error).__name__})", "Export it again.") from error


def _plane_axes(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    long = [axis for axis, length in enumerate(shape) if length > 1]
    if len(long) > 2 or any(axis > 2 for axis in long):
        kind = "time series" if len(shape) > 3 and shape[3] > 1 else "volume"
        reason = f"has the wrong dimension: a {kind} of {' x '.join(map(str, shape))} where a 2D image is expected"
        raise UnreadableImage(path, reason, "Cut the plane of interest out of it and save that.")
    if len(long) < 2 or 0 in shape:
        raise UnreadableImage(path, f"holds no image (its size is {' x '.join(map(str, shape))})", "Export it again.")
    return long[0], long[1]


def _third_last(first: int, second: int) -> list[int]:
    """Columns of the affine with the plane's two axes in front."""
    return [first, second, 3 - first - second, 3]


def _upright(
    plane: NDArray[np.generic], affine: NDArray[np.float64], orientation: NDArray[np.float64]
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Turn the stored plane so that rows run down and columns to the right of the screen.

    A radiological view shows patient left on the right, anterior up, and in sagittal and coronal planes the head up.

    Returns:
        The picture (H, W) and its affine from (row, column, slice) to RAS+ mm.
    """
    world = orientation[:2, 0]
    # the horizontal axis of the screen is x, or y in a sagittal plane: the smaller of the two world axes
    horizontal = 0 if world[0] <= world[1] else 1
    vertical = 1 - horizontal
    index = np.eye(4)[:, [vertical, horizontal, 2, 3]]
    picture = plane if vertical == 0 else plane.T
    for axis, source in ((0, vertical), (1, horizontal)):
        if orientation[source, 1] > 0:  # right, down and to the back are the negative directions of RAS+
            picture = np.flip(picture, axis)
            index[source, 3] = plane.shape[source] - 1
            index[source, axis] = -1
    return picture, affine @ index


def _scale(array: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[float, float]]:
    if array.dtype.names is not None:  # NIfTI's RGB24 and RGBA32
        colours = np.stack([array[name] for name in ("R", "G", "B")], axis=-1).astype(np.float32)
        return colours / 255.0, (0.0, 255.0)
    values = np.nan_to_num(array.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255:
        top = 255.0 if array.dtype == np.uint8 or high > 1 else 1.0
        return values / top, (0.0, top)
    return (values - low) / max(high - low, 1e-12), (low, high)
