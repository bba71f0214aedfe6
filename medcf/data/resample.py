# SPDX-License-Identifier: Apache-2.0
"""Resampling with one matrix: onto the network's grid, and back to the image's own pixels or voxels.

The matrix maps result indices to source indices and combines orientation, obliqueness, spacing, cropping and
registration, so each image is resampled only once. A result pixel larger than a source pixel takes the mean over its
extent; otherwise interpolation is linear. The axes of a picture are never oblique, so its means are exact; for a volume
they are means of linearly interpolated points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

__all__ = ["resample", "resample_labels", "shares_of_labels"]

_POINTS_AT_ONCE = 250_000  # limits the memory for the positions
_MOST_POINTS = 16  # along one edge of a voxel: the total grows with the third power


def resample(
    values: torch.Tensor, matrix: NDArray[np.floating], size: Sequence[int], *, hold_edges: bool = False
) -> torch.Tensor:
    """Resample (C, *source) to (C, *size); values fall to zero within one pixel outside the source.

    Args:
        values: a picture (C, X, Y) or a volume (C, X, Y, Z).
        matrix: (4, 4), result index to source index.
        size: size of the result, with as many numbers as the source.
        hold_edges: for a picture, keep the value in the outer half of its border pixels when enlarging.

    Returns:
        float32, a plain tensor.
    """
    plain = values.as_subclass(torch.Tensor).detach()
    if plain.ndim == 3:
        return _resample_picture(plain, matrix, size, hold_edges)
    return _resample_volume(plain.cpu().float(), matrix, (int(size[0]), int(size[1]), int(size[2])))


def resample_labels(labels: NDArray[np.integer], matrix: NDArray[np.floating], size: Sequence[int]) -> NDArray:
    """Assign the nearest label to each pixel, 0 outside.

    Args:
        labels: (C, *source).
        matrix: (4, 4), result index to source index.
        size: size of the result.
    """
    dimensions = len(size)
    axes = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    where = [
        np.rint(sum(matrix[a, b] * axes[b] for b in range(dimensions)) + matrix[a, 3]).astype(int)
        for a in range(dimensions)
    ]
    inside = np.logical_and.reduce([(w >= 0) & (w < n) for w, n in zip(where, labels.shape[1:], strict=True)])
    nearest = tuple(w.clip(0, n - 1) for w, n in zip(where, labels.shape[1:], strict=True))
    return labels[(slice(None), *nearest)] * inside


def shares_of_labels(labels: torch.Tensor, matrix: NDArray[np.floating], size: Sequence[int]) -> torch.Tensor:
    """Resample class indices: each pixel of the result takes the class that fills most of it.

    Args:
        labels: integers (1, *source).
        matrix: (4, 4), result index to source index.
        size: size of the result.

    Returns:
        int64 (1, *size).
    """
    best = torch.zeros(1, *size)
    result = torch.zeros(1, *size, dtype=torch.long)
    for label in torch.unique(labels).tolist():
        share = resample((labels == label).float(), matrix, size, hold_edges=True)
        result[share > best] = int(label)
        best = torch.maximum(best, share)
    return result


def _resample_picture(
    plane: torch.Tensor, matrix: NDArray[np.floating], size: Sequence[int], hold_edges: bool
) -> torch.Tensor:
    """Resample one axis at a time: each result axis runs along one source axis."""
    sources = [int(np.abs(matrix[:2, axis]).argmax()) for axis in range(2)]
    weights = [
        _weights(plane.shape[1 + source], int(size[axis]), matrix[source, 3], matrix[source, axis], hold_edges)
        for axis, source in enumerate(sources)
    ]
    turned = plane.to(torch.float64).permute(0, *(1 + source for source in sources))
    return (weights[0].to(plane.device) @ turned @ weights[1].to(plane.device).mT).float()


def _weights(count_in: int, count_out: int, origin: float, step: float, hold_edges: bool) -> torch.Tensor:
    """Return the matrix (count_out, count_in) for 1D resampling: output i is centered on input ``origin + step * i``.

    Steps above 1 average over the exact area of the output pixel; smaller ones interpolate linearly. With
    ``hold_edges`` the outer half of the border pixels keeps its value; otherwise it falls to zero over one pixel.
    """
    centers = origin + step * torch.arange(count_out, dtype=torch.float64)[:, None]
    pixels = torch.arange(count_in, dtype=torch.float64)[None]
    width = abs(step)
    if width > 1:
        begin = torch.maximum(centers - width / 2, pixels - 0.5)
        end = torch.minimum(centers + width / 2, pixels + 0.5)
        return (end - begin).clamp(min=0) / width
    if hold_edges:
        inside = (centers > -0.5 - 1e-9) & (centers < count_in - 0.5 + 1e-9)
        held = centers.clamp(0, count_in - 1)
        return (1 - (held - pixels).abs()).clamp(min=0) * inside
    return (1 - (centers - pixels).abs()).clamp(min=0)


def _resample_volume(values: torch.Tensor, matrix: NDArray[np.floating], size: tuple[int, int, int]) -> torch.Tensor:
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    points = [min(max(int(np.ceil(edge - 0.1)), 1), _MOST_POINTS) for edge in edges]
    lengths = np.array(values.shape[1:], dtype=np.float64)
    result = torch.zeros(values.shape[0], *size)
    rows = max(_POINTS_AT_ONCE // (size[1] * size[2]), 1)
    for start in range(0, size[0], rows):
        axes = (np.arange(start, min(start + rows, size[0])), np.arange(size[1]), np.arange(size[2]))
        # the source index is a sum of one term per result axis
        terms = [matrix[:3, axis] * numbers[:, None] for axis, numbers in enumerate(axes)]
        centers = terms[0][:, None, None] + terms[1][None, :, None] + terms[2][None, None] + matrix[:3, 3]
        part = result[:, start : start + rows]
        for corner in itertools.product(*(range(n) for n in points)):
            shift = matrix[:3, :3] @ ((np.array(corner) + 0.5) / points - 0.5)
            # grid_sample expects the volume's edges at -1 and 1, last axis first
            positions = ((2 * (centers + shift) + 1) / lengths - 1)[..., ::-1].astype(np.float32)
            part += grid_sample(values[None], torch.from_numpy(positions)[None], align_corners=False)[0]
    return result.div_(math.prod(points))
