# SPDX-License-Identifier: Apache-2.0
"""Finds the subject of an image: the picture within a frame, or the brain within a volume."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medcf.data.image import geometry, voxel_sizes

__all__ = ["SUBJECTS", "find_subject", "middle_of", "picture_box"]

logger = logging.getLogger(__name__)

SUBJECTS = ("picture", "auto", "nonzero", "estimate", "all")

_VISIBLE = 0.04  # luminance above which a pixel counts as part of the picture (10 of 255)
_SMALLER_THAN_A_BRAIN = 80.0  # mm: a volume whose longest edge is shorter holds only part of a brain
_ZEROS_AROUND_A_BRAIN = 0.2  # fraction of voxels that are exactly zero if the background was cleared
_OPENING = 2.0  # mm
_CLOSING = 4.0  # mm


def find_subject(image: torch.Tensor, method: str | Callable[[torch.Tensor], torch.Tensor] = "auto") -> torch.Tensor:
    """Find the subject of a volume.

    ``"nonzero"`` takes every voxel that is not exactly zero, which is right only for skull-stripped volumes.
    ``"estimate"`` thresholds by Otsu's method, applies opening and closing, keeps the largest component and fills its
    holes. This is not skull stripping (use HD-BET or SynthStrip): for a whole head it returns the head including skull
    and scalp, and logs a warning. ``"all"`` takes the whole volume. ``"auto"`` chooses ``"all"`` for crops smaller than
    a brain, ``"nonzero"`` if the background is exactly zero, and ``"estimate"`` otherwise.

    Args:
        image: (1, X, Y, Z) in any units.
        method: one of the above, or a function from the image to a mask of the same shape.

    Returns:
        bool (1, X, Y, Z).

    Raises:
        ValueError: if the method is unknown or the volume has no contrast.
    """
    if callable(method):
        return torch.as_tensor(method(image)).as_subclass(torch.Tensor).cpu() > 0
    if method not in SUBJECTS[1:]:
        raise ValueError(f"mask={method!r} is not one of {', '.join(SUBJECTS[1:])}; pass a file or a tensor as it is.")
    values = np.asarray(image.as_subclass(torch.Tensor).detach().cpu())[0]
    sizes = np.array(voxel_sizes(geometry(image)[0]))
    if method == "auto":
        method = _choose(values, sizes)
    if method == "all":
        found = np.ones(values.shape, bool)
    elif method == "nonzero":
        found = _largest(values != 0)
    else:
        found = _estimate(values, sizes)
        logger.warning(
            "%s: the brain mask is estimated by a threshold: any skull and scalp count as brain. "
            "Give a skull-stripped volume or a mask.",
            Path(str(getattr(image, "meta", {}).get("filename_or_obj", "a volume"))).name,
        )
    if not found.any():
        raise ValueError("the volume holds only one value, so no brain can be found: check the file")
    return torch.from_numpy(np.ascontiguousarray(found))[None]


def picture_box(picture: torch.Tensor, intensity: tuple[float, float] = (0.0, 1.0)) -> tuple[list[int], list[int]]:
    """Find the box around the non-black part of a picture's ultrasound region.

    A row or column counts if 2 % of it is visible, so single bright pixels or a thin line do not widen the box.

    Args:
        picture: (1, X, Y); its meta entry ``region`` gives first column and row, end column and row.
        intensity: values of black and white.

    Returns:
        First column and row, end column and row.
    """
    width, height = (int(n) for n in picture.shape[1:])
    region = getattr(picture, "meta", {}).get("region", (0, 0, width, height))
    left, top, right, bottom = (int(n) for n in region)
    threshold = intensity[0] + _VISIBLE * (intensity[1] - intensity[0])
    visible = (picture.as_subclass(torch.Tensor)[0, left:right, top:bottom] > threshold).to(torch.float32)
    columns = torch.nonzero(visible.mean(dim=1) > 0.02).flatten()
    rows = torch.nonzero(visible.mean(dim=0) > 0.02).flatten()
    if not len(rows) or not len(columns):
        return [left, top], [right, bottom]
    first = [left + int(columns[0]), top + int(rows[0])]
    return first, [left + int(columns[-1]) + 1, top + int(rows[-1]) + 1]


def middle_of(inside: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the world coordinates of the center of the mask's bounding box along the world's axes.

    Args:
        inside: (X, Y, Z).
        affine: indices to mm.
    """
    # the extremes along any direction are among the first and last voxels of each line
    lines = np.argwhere(inside.any(axis=2))
    columns = inside[lines[:, 0], lines[:, 1]]
    first, last = columns.argmax(axis=1), inside.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([lines, first]), np.column_stack([lines, last])])
    world = ends @ affine[:3, :3].T + affine[:3, 3]
    return (world.min(axis=0) + world.max(axis=0)) / 2


def _choose(values: NDArray[np.floating], sizes: NDArray[np.float64]) -> str:
    if float((np.array(values.shape) * sizes).max()) < _SMALLER_THAN_A_BRAIN:
        return "all"
    corners = values[:: values.shape[0] - 1, :: values.shape[1] - 1, :: values.shape[2] - 1]
    cleared = float((values == 0).mean()) >= _ZEROS_AROUND_A_BRAIN and bool(np.median(corners) == 0)
    return "nonzero" if cleared else "estimate"


def _estimate(values: NDArray[np.floating], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    from skimage.filters import threshold_otsu

    # in CT, air varies little and lies far below tissue; a few bright voxels (vessels, metal) must not shift the
    # threshold
    low, high = np.percentile(values, [1.0, 99.5])
    if not high > low:
        return np.zeros(values.shape, bool)
    sample = np.clip(values[:: max(values.shape[0] // 64, 1)], low, high)
    bright = np.clip(values, low, high) > threshold_otsu(sample)
    opened = ndimage.binary_opening(bright, _ball(_OPENING, sizes))
    solid = _largest(opened if opened.any() else bright)
    radius = _ball(_CLOSING, sizes)
    margin = [(n, n) for n in radius.shape]
    closed = ndimage.binary_closing(np.pad(solid, margin), radius)
    filled = ndimage.binary_fill_holes(closed)
    return filled[tuple(slice(n, -n) for n, _ in margin)]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest connected component and fill its holes."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in labels:  # plane by plane, because bincount converts its input to 64 bits
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    kept = labels == 1 + int(sizes[1:].argmax()) if count else mask
    lost = 1 - kept.sum() / max(mask.sum(), 1)
    if lost > 0.02:
        logger.info("%.0f %% of the mask is not connected to the brain and is left out", 100 * lost)
    return ndimage.binary_fill_holes(kept)


def _ball(radius: float, sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the voxels within ``radius`` mm of the center, at least its neighbors along the finest axis."""
    reach = np.maximum(np.floor(radius / sizes), 0).astype(int)
    if not reach.any():
        reach[int(sizes.argmin())] = 1
    axes = np.meshgrid(*(np.arange(-n, n + 1) * mm for n, mm in zip(reach, sizes, strict=True)), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes)) <= max(radius, float(sizes.min())) + 1e-6
