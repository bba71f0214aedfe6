# SPDX-License-Identifier: Apache-2.0
"""The network's grid of a brain volume, and the way back into the scanner's own voxels.

One matrix, from voxel indices of the grid to voxel indices of the volume, holds orientation, obliqueness, spacing,
cropping and registration together, so every volume is resampled once. Where a voxel of the target is larger than one of
the source, it takes the mean over its own extent (of linearly interpolated points); elsewhere the interpolation is
linear. That is how the phantoms come onto the grid, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from medcf.data.volumes.brain_mask import brain_mask

__all__ = [
    "VolumeRecord",
    "apply_volume_difference",
    "check_grid_options",
    "from_volume_grid",
    "middle_of",
    "repeat_volume_grid",
    "resample_volume",
    "to_volume_grid",
]

_POINTS_AT_ONCE = 2_000_000  # bounds the memory of the positions
_MOST_POINTS = 16  # along the edge of a voxel: their number grows with the third power
_ROUNDING = 1e-4  # half of a voxel is half of it, also after float32

VolumeRecord = dict[str, Any]
"""``native_size`` and ``grid_size`` (three numbers), ``matrix`` (4 x 4 rows: index on the grid to index in the volume),
``intensity`` (the volume's values that are -1 and 1 on the grid), ``registration`` (4 x 4 rows: mm in the template to
mm in the volume, RAS+; the unit matrix without one). Numbers only: JSON and collate functions take it."""


def to_volume_grid(
    image: torch.Tensor,
    size: Sequence[int] = (40, 48, 40),
    spacing: float | Sequence[float] = 4.0,
    *,
    mask: torch.Tensor | str | None = None,
    center: str = "brain",
    percentile: float = 99.5,
    intensity: tuple[float, float] | None = None,
    bias_correction: bool = False,
    template: torch.Tensor | None = None,
    registration: str = "rigid",
) -> tuple[MetaTensor, VolumeRecord]:
    """Resample a volume onto the network's grid: axes right, anterior and superior, centered on the brain.

    Voxels of which less than half is brain are exactly -1. The others take the mean over the brain in them, from 0
    (-1; the ``100 - percentile`` th percentile where the brain has negative values, as in CT) to the ``percentile`` th
    percentile of the brain (1), clipped.

    Args:
        image: (1, X, Y, Z) in any units, from :func:`medcf.data.volumes.read_volume`.
        size: voxels along x, y and z.
        spacing: mm between them: one number or three.
        mask: the brain, (1, X, Y, Z) on the voxels of ``image``; or a method of
            :func:`medcf.data.volumes.brain_mask`; None is ``"auto"``.
        center: ``"brain"``, the middle of the mask's bounding box, or ``"image"``, the middle of the volume.
        percentile: of the brain's values that becomes 1.
        intensity: values that become -1 and 1, such as 0 and 80 HU of a CT; None takes them from the brain.
        bias_correction: correct the bias field by N4 first (SimpleITK). The way back does not put it in again.
        template: a volume to whose frame the brain is registered first (SimpleITK). The grid is then centered on the
            template's brain.
        registration: ``"rigid"`` or ``"affine"``.

    Returns:
        float32 (1, *size) in [-1, 1], whose affine leads to the world of ``image`` (registered or not), and the record
        of the way back.

    Raises:
        ValueError: if shape, size, spacing, mask or an option make no sense, or the brain has no contrast.
        ImportError: if an option needs SimpleITK and it is missing.
    """
    steps = check_grid_options(size, spacing, center, percentile, registration)
    if image.ndim != 4 or image.shape[0] != 1 or min(image.shape[1:]) < 1:
        raise ValueError(f"image must be (1, X, Y, Z), got shape {tuple(image.shape)}")
    native = np.asarray(image.as_subclass(torch.Tensor).detach().cpu(), dtype=np.float32)[0]
    affine = np.asarray(image.affine, dtype=np.float64) if isinstance(image, MetaTensor) else np.eye(4)
    inside = _mask_of(image, mask)
    moved = np.eye(4)
    if bias_correction or template is not None:
        from medcf.data.volumes import corrections

        if bias_correction:
            native = corrections.correct_bias(native, inside, affine)
        if template is not None:
            middle, moved = corrections.register(native, inside, affine, template, registration)
    if template is None:
        middle = middle_of(inside if center == "brain" else np.ones_like(inside), affine)
    frame = np.diag([*steps, 1.0])
    frame[:3, 3] = middle - steps * (np.array(size) - 1) / 2
    matrix = np.linalg.inv(affine) @ moved @ frame
    low, high = _intensity(native[inside], percentile) if intensity is None else map(float, intensity)
    if not high > low:
        raise ValueError("there is no range of intensities: check the volume and its mask")
    record: VolumeRecord = {
        "native_size": tuple(int(n) for n in native.shape),
        "grid_size": tuple(int(n) for n in size),
        "matrix": _rows(matrix),
        "intensity": (low, high),
        "registration": _rows(moved),
    }
    values = _brain_on_grid(native, inside, record)[None]
    meta = {key: value for key, value in getattr(image, "meta", {}).items() if key != "affine"}
    meta["spacing_mm"] = tuple(float(step) for step in steps)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine @ matrix), meta=meta), record


def repeat_volume_grid(image: torch.Tensor, mask: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
    """Put another volume on the same voxels onto the grid of a record, in the same way and with the same intensities.

    Args:
        image: (1, X, Y, Z).
        mask: the brain, (1, X, Y, Z).
        record: from :func:`to_volume_grid`.

    Returns:
        float32 (1, *grid_size) in [-1, 1].
    """
    native = np.asarray(image.as_subclass(torch.Tensor).detach().cpu(), dtype=np.float32)[0]
    return torch.from_numpy(_brain_on_grid(native, _mask_of(image, mask), record)[None])


def from_volume_grid(values: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
    """Resample a signed difference from the grid into the original volume's voxels; zero outside of the grid.

    Args:
        values: (..., *grid_size), such as counterfactual minus input.
        record: from :func:`to_volume_grid`, also after collating.

    Returns:
        float32 (..., X, Y, Z), a plain tensor in the units of ``values``.

    Raises:
        ValueError: if the shape is not the grid's.
    """
    native, grid, matrix, _ = _fields(record)
    plain = values.as_subclass(torch.Tensor).detach().cpu()
    if tuple(plain.shape[-3:]) != grid:
        raise ValueError(f"values must have the shape (..., {', '.join(map(str, grid))}), got {tuple(values.shape)}")
    resampled = resample_volume(plain.float().reshape(-1, *grid), np.linalg.inv(matrix), native)
    return resampled.reshape(*plain.shape[:-3], *native)


def apply_volume_difference(
    original: torch.Tensor, difference: torch.Tensor, record: Mapping[str, Any]
) -> torch.Tensor:
    """Add a difference on the grid to the original in its own units and voxels, so that no detail is lost to the grid.

    Args:
        original: (1, X, Y, Z) in its own units.
        difference: (1, *grid_size), counterfactual minus input on the grid, of which 2 is the full range.
        record: from :func:`to_volume_grid`.

    Returns:
        (1, X, Y, Z) in the units of ``original``, a MetaTensor with its geometry if it is one; nowhere below the
        smallest value of the original or the grid's black.
    """
    low, high = _fields(record)[3]
    native = from_volume_grid(difference, record) * ((high - low) / 2)
    floor = min(low, float(original.min()))
    changed = original + native.to(original)
    # values that nothing was taken from stay as they are, to the bit
    return torch.where(native.to(original) == 0, original, changed.clamp(min=floor))


def resample_volume(values: torch.Tensor, matrix: NDArray[np.floating], size: tuple[int, int, int]) -> torch.Tensor:
    """Resample (C, X, Y, Z) to (C, *size); zero outside, reached within one voxel.

    Args:
        values: float32, the sources.
        matrix: (4, 4), index in the result to index in the source.
        size: of the result.
    """
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    points = [min(max(int(np.ceil(edge - 0.1)), 1), _MOST_POINTS) for edge in edges]
    lengths = np.array(values.shape[1:], dtype=np.float64)
    result = torch.zeros(values.shape[0], *size)
    rows = max(_POINTS_AT_ONCE // (size[1] * size[2]), 1)
    for start in range(0, size[0], rows):
        axes = (np.arange(start, min(start + rows, size[0])), np.arange(size[1]), np.arange(size[2]))
        # the index in the source is a sum of one term for each axis of the result
        terms = [matrix[:3, axis] * numbers[:, None] for axis, numbers in enumerate(axes)]
        centers = terms[0][:, None, None] + terms[1][None, :, None] + terms[2][None, None] + matrix[:3, 3]
        part = result[:, start : start + rows]
        for corner in itertools.product(*(range(n) for n in points)):
            shift = matrix[:3, :3] @ ((np.array(corner) + 0.5) / points - 0.5)
            # grid_sample's positions: edges of the volume at -1 and 1, last axis first
            positions = ((2 * (centers + shift) + 1) / lengths - 1)[..., ::-1].astype(np.float32)
            part += grid_sample(values[None], torch.from_numpy(positions)[None], align_corners=False)[0]
    return result / math.prod(points)


def _brain_on_grid(
    native: NDArray[np.float32], inside: NDArray[np.bool_], record: Mapping[str, Any]
) -> NDArray[np.float32]:
    _, grid, matrix, (low, high) = _fields(record)
    # black is zero while resampling, so what lies outside adds nothing
    sources = torch.from_numpy(np.stack([inside, np.where(inside, native - low, 0)]).astype(np.float32))
    share, brain = resample_volume(sources, matrix, grid).numpy()
    brain = brain / np.maximum(share, 1e-3)
    scaled = np.clip(2 * brain / (high - low) - 1, -1, 1)
    return np.where(share >= 0.5 - _ROUNDING, scaled, -1).astype(np.float32)


def check_grid_options(
    size: Sequence[int],
    spacing: float | Sequence[float],
    center: str = "brain",
    percentile: float = 99.5,
    registration: str = "rigid",
) -> NDArray[np.float64]:
    """Check options of :func:`to_volume_grid`, which are the same for every volume.

    Returns:
        The three spacings.

    Raises:
        ValueError: if one makes no sense; names it.
    """
    numbers = np.asarray(size)
    if numbers.shape != (3,) or numbers.dtype.kind != "i" or numbers.min() < 1:
        raise ValueError(f"size must be three positive numbers (voxels), got {size!r}")
    steps = np.asarray(spacing)
    if steps.shape not in ((), (3,)) or steps.dtype.kind not in "if" or not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"spacing must be positive millimeters, one number or three, got {spacing!r}")
    if center not in ("brain", "image"):
        raise ValueError(f"center={center!r} is neither 'brain' nor 'image'.")
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile={percentile}: choose one above 50, up to 100.")
    if registration not in ("rigid", "affine"):
        raise ValueError(f"registration={registration!r} is neither 'rigid' nor 'affine'.")
    return np.broadcast_to(steps.astype(np.float64), 3)


def _mask_of(image: torch.Tensor, mask: torch.Tensor | str | None) -> NDArray[np.bool_]:
    found = brain_mask(image, mask or "auto")[0] if mask is None or isinstance(mask, str) else mask
    if tuple(found.shape) != tuple(image.shape):
        raise ValueError(f"mask must be on the image's voxels {tuple(image.shape)}, got shape {tuple(found.shape)}")
    inside = np.asarray(found.as_subclass(torch.Tensor).detach().cpu())[0] > 0
    if not inside.any():
        raise ValueError("mask is empty: give one in which the brain is 1")
    return inside


def middle_of(inside: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World coordinates of the middle of the mask's bounding box along the world's axes."""
    # the extremes along any direction are among the first and last voxels of every line
    lines = np.argwhere(inside.any(axis=2))
    columns = inside[lines[:, 0], lines[:, 1]]
    first, last = columns.argmax(axis=1), inside.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([lines, first]), np.column_stack([lines, last])])
    world = ends @ affine[:3, :3].T + affine[:3, 3]
    return (world.min(axis=0) + world.max(axis=0)) / 2


def _intensity(brain: NDArray[np.float32], percentile: float) -> tuple[float, float]:
    """Values that become black and white."""
    darkest, high = (float(value) for value in np.percentile(brain, [100 - percentile, percentile]))
    low = min(darkest, 0.0)
    return low, high


def _rows(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)


def _fields(
    record: Mapping[str, Any],
) -> tuple[tuple[int, int, int], tuple[int, int, int], NDArray[np.float64], tuple[float, float]]:
    """Read a record; collating and decollating may have made tensors of its numbers."""
    native, grid = (tuple(int(n) for n in record[name]) for name in ("native_size", "grid_size"))
    matrix = np.array([[float(value) for value in row] for row in record["matrix"]])
    low, high = (float(value) for value in record["intensity"])
    return native, grid, matrix, (low, high)  # type: ignore[return-value]  # three numbers each
