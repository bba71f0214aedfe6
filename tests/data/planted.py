# SPDX-License-Identifier: Apache-2.0
"""Measures whether a change on the grid comes back to the right place, and a change in a volume arrives there.

A counterfactual that is drawn a voxel off, or mirrored, is worse than none. Both ways are measured in world coordinates
with a small blob at a known point off every plane of symmetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medcf.data import Grid
from medcf.data.subject import middle_of

__all__ = ["measure_planted_change"]


def measure_planted_change(
    image: MetaTensor,
    spec: Grid,
    *,
    mask: torch.Tensor,
    offset: Sequence[float] = (17.0, -11.0, 7.0),
    radius: float | None = None,
    registered: tuple[Any, Any] | None = None,
) -> dict[str, float]:
    """Plant a blob on the grid and look for it in the volume; plant one in the volume and look for it on the grid.

    Args:
        image: (1, X, Y, Z), from :func:`medcf.read`.
        spec: the grid.
        mask: the brain, (1, X, Y, Z).
        offset: mm (right, anterior, superior) from the middle of the brain to the blob; it must lie within the brain.
        radius: mm of the blob; by default 1.5 times the largest voxel edge.
        registered: of :meth:`medcf.data.Grid.fit`.

    Returns:
        ``native_mm`` and ``grid_mm``: distance of the centers, in the volume and on the grid; ``voxel_mm``: the largest
        voxel edge of both; ``native_voxels`` and ``grid_voxels``: the distances in units of it.

    Raises:
        ValueError: if the blob lies outside of the brain or the grid.
    """
    record = spec.fit(image, mask, registered)
    plain = spec.to(image, record)
    native_affine = np.asarray(image.affine, dtype=np.float64)
    grid_affine = np.asarray(plain.affine, dtype=np.float64)
    inside = np.asarray(mask.as_subclass(torch.Tensor))[0] > 0
    point = middle_of(inside, native_affine) + np.asarray(offset)
    edges = [np.linalg.norm(affine[:3, :3], axis=0).max() for affine in (native_affine, grid_affine)]
    reach = 1.5 * float(max(edges)) if radius is None else radius
    index = tuple(np.rint(np.linalg.solve(native_affine, [*point, 1.0])[:3]).astype(int))
    if any(not 0 <= i < n for i, n in zip(index, inside.shape, strict=True)) or not inside[index]:
        raise ValueError(f"offset={tuple(offset)}: that point lies outside of the brain")

    change = torch.from_numpy(_blob(grid_affine, record.grid, point, reach)[None])
    back = record.back(change)[0].numpy()
    planted = _plant(image, record.intensity, _blob(native_affine, inside.shape, point, reach))
    arrived = (spec.to(planted, record) - plain).as_tensor()
    result = {
        "native_mm": float(np.linalg.norm(_center(back, native_affine) - point)),
        "grid_mm": float(np.linalg.norm(_center(arrived[0].numpy(), grid_affine) - point)),
        "voxel_mm": float(max(edges)),
    }
    return result | {f"{name}_voxels": result[f"{name}_mm"] / result["voxel_mm"] for name in ("native", "grid")}


def _blob(
    affine: NDArray[np.float64], size: tuple[int, ...], point: NDArray[np.float64], radius: float
) -> NDArray[np.float32]:
    """A round, smooth-edged blob of height 1 on any voxels."""
    axes = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    world = np.stack(axes, axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(world - point, axis=-1)
    return np.exp(-0.5 * (2 * distance / radius) ** 2).astype(np.float32)


def _plant(image: MetaTensor, window: tuple[float, float], blob: NDArray[np.float32]) -> MetaTensor:
    """Brighten by a third of the range within the blob, or darken where it is bright already."""
    low, high = window
    values = image.as_tensor()[0]
    weight = torch.from_numpy(blob)
    bright = float((values * weight).sum() / weight.sum()) > (low + high) / 2
    changed = values + weight * (high - low) * (-0.35 if bright else 0.35)
    return MetaTensor(changed[None], affine=image.affine)


def _center(change: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Center of mass (mm) of what exceeds a tenth of the largest change."""
    height = np.abs(change)
    if not height.max() > 0:
        raise ValueError("the planted change is lost: its point lies outside of the grid")
    height = np.where(height > 0.1 * height.max(), height, 0)
    where = np.argwhere(height)
    weights = height[tuple(where.T)].astype(np.float64)
    center = (where * weights[:, None]).sum(axis=0) / weights.sum()
    return affine[:3, :3] @ center + affine[:3, 3]
