# SPDX-License-Identifier: Apache-2.0
"""Which voxels of a volume are brain: given, told by a background of zeros, or estimated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["MASK_METHODS", "MaskMethod", "brain_mask"]

logger = logging.getLogger(__name__)

MaskMethod = Literal["auto", "nonzero", "estimate", "all"]
MASK_METHODS = get_args(MaskMethod)

_SMALLER_THAN_A_BRAIN = 80.0  # mm: the longest edge of a volume that can only be a part of a brain
_ZEROS_AROUND_A_BRAIN = 0.2  # share of voxels that are exactly zero where the background was cleared
_OPENING = 2.0  # mm
_CLOSING = 4.0  # mm


def brain_mask(image: torch.Tensor, method: str = "auto") -> tuple[torch.Tensor, str]:
    """Find the brain of a volume.

    ``"nonzero"`` takes every voxel that is not exactly zero, which is right for skull-stripped volumes alone.
    ``"estimate"`` takes what is brighter than Otsu's threshold, opened, closed, its largest component, filled. That is
    no skull stripping: of a whole head it is the head, skull and scalp included, and a warning says so. ``"all"`` takes
    the whole volume. ``"auto"`` chooses ``"all"`` for crops that are smaller than a brain, ``"nonzero"`` where the
    background is exactly zero, and ``"estimate"`` otherwise.

    Args:
        image: (1, X, Y, Z) in any units.
        method: one of the above.

    Returns:
        bool (1, X, Y, Z), and the method that was used.

    Raises:
        ValueError: an unknown method, or a volume without any contrast.
    """
    if method not in MASK_METHODS:
        raise ValueError(f"mask={method!r} is none of {', '.join(MASK_METHODS)}; a file or a tensor is given as such.")
    values = np.asarray(image.as_subclass(torch.Tensor).detach().cpu())[0]
    sizes = _voxel_sizes(image)
    if method == "auto":
        method = _choose(values, sizes)
    if method == "all":
        found = np.ones(values.shape, bool)
    elif method == "nonzero":
        found = _largest(values != 0)
    else:
        found = _estimate(values, sizes)
        logger.warning(
            "%s: the brain mask is an estimate by threshold: skull and scalp, where there are any, count as brain. "
            "Give a skull-stripped volume or a mask.",
            Path(str(getattr(image, "meta", {}).get("filename_or_obj", "a volume"))).name,
        )
    if not found.any():
        raise ValueError("the volume holds one value only, so no brain can be found in it: check the file")
    return torch.from_numpy(found[None]), method


def _choose(values: NDArray[np.floating], sizes: NDArray[np.float64]) -> str:
    if float((np.array(values.shape) * sizes).max()) < _SMALLER_THAN_A_BRAIN:
        return "all"
    corners = values[:: values.shape[0] - 1, :: values.shape[1] - 1, :: values.shape[2] - 1]
    cleared = float((values == 0).mean()) >= _ZEROS_AROUND_A_BRAIN and bool(np.median(corners) == 0)
    return "nonzero" if cleared else "estimate"


def _estimate(values: NDArray[np.floating], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    from skimage.filters import threshold_otsu

    # air varies little and far below tissue in CT; a few bright voxels (vessels, metal) must not shift the threshold
    low, high = np.percentile(values, [1.0, 99.5])
    if not high > low:
        return np.zeros(values.shape, bool)
    clipped = np.clip(values, low, high)
    bright = clipped > threshold_otsu(clipped[:: max(values.shape[0] // 64, 1)])
    opened = ndimage.binary_opening(bright, _ball(_OPENING, sizes))
    solid = _largest(opened if opened.any() else bright)
    radius = _ball(_CLOSING, sizes)
    margin = [(n, n) for n in radius.shape]
    closed = ndimage.binary_closing(np.pad(solid, margin), radius)
    filled = ndimage.binary_fill_holes(closed)
    return filled[tuple(slice(n, -n) for n, _ in margin)]


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest connected part and fill its holes."""
    parts, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 3))
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept = parts == sizes.argmax()
        lost = 1 - kept.sum() / mask.sum()
        if lost > 0.02:
            logger.info("%.0f %% of the mask is not connected to the brain and left out", 100 * lost)
        mask = kept
    return ndimage.binary_fill_holes(mask)


def _ball(radius: float, sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Voxels within ``radius`` mm of the middle one, at least its neighbors along the finest axis."""
    reach = np.maximum(np.floor(radius / sizes), 0).astype(int)
    if not reach.any():
        reach[int(sizes.argmin())] = 1
    axes = np.meshgrid(*(np.arange(-n, n + 1) * mm for n, mm in zip(reach, sizes, strict=True)), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes)) <= max(radius, float(sizes.min())) + 1e-6


def _voxel_sizes(image: torch.Tensor) -> NDArray[np.float64]:
    if not isinstance(image, MetaTensor):
        return np.ones(3)
    return np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
