# SPDX-License-Identifier: Apache-2.0
"""The network's grid: to it, and back to the matrix of the study.

Both ways are separable linear resampling with exact pixel positions, so nothing shifts by a fraction of a pixel: an
area average where pixels become larger (no aliasing of speckle), linear interpolation where they become smaller. What
lies outside is black on the way in, and no difference on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from monai.data import MetaTensor

from medcf.data.pixels import get_spacing, to_luminance

__all__ = ["GridRecord", "apply_difference", "from_grid", "grid_record", "resample_from", "resample_to", "to_grid"]

_VISIBLE = 0.04  # luminance above which a pixel counts as part of the picture (10 of 255)


class GridRecord(TypedDict):
    """Where a grid lies in the native matrix. Plain numbers only, so that it can be collated and stored as JSON.

    Pixel (i, j) of the grid is centred on row ``origin[0] + step[0] * i``, column ``origin[1] + step[1] * j``.
    """

    native_size: tuple[int, int]
    grid_size: tuple[int, int]
    origin: tuple[float, float]
    step: tuple[float, float]
    metric: int


def to_grid(
    image: torch.Tensor,
    size: Sequence[int] = (64, 80),
    spacing: float | Sequence[float] = 1.75,
    *,
    intensity: tuple[float, float] = (-1.0, 1.0),
) -> tuple[MetaTensor, GridRecord]:
    """Resample an image onto the network's grid.

    Where the pixel spacing is known the grid has ``spacing`` in mm and is centred on the image if the whole of it fits,
    else on the picture in it (the non-black part of its ultrasound region). Where it is unknown the picture is fitted
    into the grid, its aspect ratio kept.

    Args:
        image: (1 or 3, H, W) in [0, 1] from :func:`medcf.data.read_study`; colour becomes luminance.
        size: rows and columns of the grid.
        spacing: mm between rows and columns of the grid: one number or two.
        intensity: what black (0) and white (1) become.

    Returns:
        The (1, *size) image in the range ``intensity``, with the affine of the grid, and the record of the way back.

    Raises:
        ValueError: if shape, size or spacing make no sense.
    """
    rows, columns = (int(n) for n in size)
    if min(rows, columns) < 1:
        raise ValueError(f"size must be two positive numbers, got {tuple(size)}")
    source = to_luminance(image)
    if source.ndim != 3 or min(source.shape[1:]) < 1:
        raise ValueError(f"image must be (1 or 3, H, W), got shape {tuple(image.shape)}")
    step = _metric_step(image, spacing)
    record = _place(source, image, (rows, columns), step)
    plane = _plain(source).to(torch.float32)
    low, high = intensity
    grid = resample_to(plane, record) * (high - low) + low
    meta = dict(getattr(image, "meta", {}))
    affine = _grid_affine(meta.get("affine"), record)
    meta["spacing_mm"] = tuple(math.nan if step is None else float(n) for n in _pair(spacing))
    meta["region"] = (0, 0, rows, columns)
    if isinstance(meta.get("overlay_mask"), torch.Tensor):
        # native masks differ in size from case to case, those on the grid can be collated
        meta["overlay_mask"] = resample_to(meta["overlay_mask"].to(torch.float32), record) > 0.1
    meta.pop("affine", None)
    return MetaTensor(grid, affine=affine, meta=meta), record


def from_grid(values: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
    """Resample a difference from the grid to the native matrix, linearly in the values; zero outside of the grid.

    Args:
        values: (..., rows, columns) on the grid, such as counterfactual minus input.
        record: from :func:`to_grid` or :func:`grid_record`.

    Returns:
        (..., H, W), a plain tensor, in the units of ``values``.
    """
    return resample_from(values, record)


def apply_difference(
    original: torch.Tensor,
    difference: torch.Tensor,
    record: Mapping[str, Any],
    *,
    intensity: tuple[float, float] = (-1.0, 1.0),
) -> torch.Tensor:
    """Add a difference on the grid to the original at full resolution, so that no detail is lost to the grid.

    Args:
        original: (1, H, W) in [0, 1].
        difference: (1, rows, columns), counterfactual minus input on the grid.
        record: from :func:`to_grid`.
        intensity: the range of the grid, as given to :func:`to_grid`.

    Returns:
        (1, H, W) in [0, 1], a MetaTensor with the original's geometry if the original is one.
    """
    native = from_grid(difference, record).to(original.dtype) / (intensity[1] - intensity[0])
    return (original + native).clamp(0, 1)


def grid_record(image: MetaTensor) -> GridRecord:
    """The record that :class:`medcf.transforms.ToGrid` left in the meta data.

    Raises:
        ValueError: if the image did not go through it.
    """
    record = image.meta.get("grid_record")
    if record is None:
        raise ValueError("image carries no grid_record: apply medcf.transforms.ToGrid to it first")
    return record


def resample_to(plane: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
    """Resample (..., H, W) onto the grid of ``record``; zero where the grid reaches beyond the matrix."""
    (height, width), (rows, columns), origin, step = _fields(record)
    _check_shape(plane, (height, width), "image")
    vertical = _weights(height, rows, origin[0], step[0], hold_edges=True)
    horizontal = _weights(width, columns, origin[1], step[1], hold_edges=True)
    return _separable(plane, vertical, horizontal)


def resample_from(plane: torch.Tensor, record: Mapping[str, Any]) -> torch.Tensor:
    """Resample (..., rows, columns) from the grid of ``record`` to the native matrix; falls to zero outside."""
    (height, width), (rows, columns), origin, step = _fields(record)
    _check_shape(plane, (rows, columns), "values")
    vertical = _weights(rows, height, -origin[0] / step[0], 1 / step[0], hold_edges=False)
    horizontal = _weights(columns, width, -origin[1] / step[1], 1 / step[1], hold_edges=False)
    return _separable(plane, vertical, horizontal)


def _separable(plane: torch.Tensor, vertical: torch.Tensor, horizontal: torch.Tensor) -> torch.Tensor:
    plane = _plain(plane)
    dtype = plane.dtype if plane.is_floating_point() else torch.float32
    values = plane.to(torch.float64)
    return (vertical.to(plane.device) @ values @ horizontal.to(plane.device).mT).to(dtype)


def _weights(count_in: int, count_out: int, origin: float, step: float, *, hold_edges: bool) -> torch.Tensor:
    """Matrix (count_out, count_in) of a 1D resampling: output i is centred on input ``origin + step * i``.

    Steps above 1 average over the exact area of the output pixel; smaller ones interpolate linearly. With
    ``hold_edges`` the outer half of the border pixels keeps its value; otherwise it runs to zero over one
    pixel.
    """
    centers = origin + step * torch.arange(count_out, dtype=torch.float64)[:, None]
    pixels = torch.arange(count_in, dtype=torch.float64)[None]
    if step > 1:
        begin = torch.maximum(centers - step / 2, pixels - 0.5)
        end = torch.minimum(centers + step / 2, pixels + 0.5)
        return (end - begin).clamp(min=0) / step
    if hold_edges:
        inside = (centers > -0.5 - 1e-9) & (centers < count_in - 0.5 + 1e-9)
        held = centers.clamp(0, count_in - 1)
        return (1 - (held - pixels).abs()).clamp(min=0) * inside
    return (1 - (centers - pixels).abs()).clamp(min=0)


def _metric_step(image: torch.Tensor, spacing: float | Sequence[float]) -> tuple[float, float] | None:
    """Native pixels per grid pixel, None if the native spacing is unknown."""
    wanted = _pair(spacing)
    if not all(math.isfinite(n) and n > 0 for n in wanted):
        raise ValueError(f"spacing must be positive millimetres, got {spacing!r}")
    native = get_spacing(image)
    return None if native is None else (wanted[0] / native[0], wanted[1] / native[1])


def _pair(spacing: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(spacing, int | float):
        return float(spacing), float(spacing)
    row, column = spacing
    return float(row), float(column)


def _place(
    source: torch.Tensor, image: torch.Tensor, size: tuple[int, int], step: tuple[float, float] | None
) -> GridRecord:
    """Decide which part of the matrix the grid covers."""
    height, width = (int(n) for n in source.shape[-2:])
    # pixel edges run from 0 to H, so that the centre of pixel 0 is at 0.5
    center = (height / 2, width / 2)
    metric = step is not None
    if step is None:
        top, left, bottom, right = _picture(source, image)
        scale = max((bottom - top) / size[0], (right - left) / size[1])
        step, center = (scale, scale), ((top + bottom) / 2, (left + right) / 2)
    elif any(n > k * s + 1 for n, k, s in zip((height, width), size, step, strict=True)):
        top, left, bottom, right = _picture(source, image)
        center = ((top + bottom) / 2, (left + right) / 2)
    origin = tuple(c - 0.5 + s * (0.5 - n / 2) for c, s, n in zip(center, step, size, strict=True))
    return {
        "native_size": (height, width),
        "grid_size": size,
        "origin": (float(origin[0]), float(origin[1])),
        "step": (float(step[0]), float(step[1])),
        "metric": int(metric),
    }


def _picture(source: torch.Tensor, image: torch.Tensor) -> tuple[int, int, int, int]:
    """Bounding box (first row, first column, end row, end column) of the non-black part of the ultrasound region.

    A row or column counts if 2 % of it is visible, so that single bright pixels or a thin line do not widen the box.
    """
    height, width = (int(n) for n in source.shape[-2:])
    region = getattr(image, "meta", {}).get("region", (0, 0, height, width))
    top, left, bottom, right = (int(n) for n in region)
    visible = (_plain(source)[0, top:bottom, left:right] > _VISIBLE).to(torch.float32)
    rows = torch.nonzero(visible.mean(dim=1) > 0.02).flatten()
    columns = torch.nonzero(visible.mean(dim=0) > 0.02).flatten()
    if not len(rows) or not len(columns):
        return top, left, bottom, right
    return top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1


def _grid_affine(affine: object, record: Mapping[str, Any]) -> torch.Tensor:
    """Affine of the grid: the native one after the grid's scale and offset."""
    native = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(affine).to(torch.float64)
    index = torch.eye(4, dtype=torch.float64)
    index[0, 0], index[1, 1] = record["step"]
    index[0, 3], index[1, 3] = record["origin"]
    return native @ index


def _fields(
    record: Mapping[str, Any],
) -> tuple[tuple[int, int], tuple[int, int], tuple[float, float], tuple[float, float]]:
    """Read a record; collating and decollating may have made tensors of its numbers."""
    native, grid = ((int(a), int(b)) for a, b in (record["native_size"], record["grid_size"]))
    origin, step = ((float(a), float(b)) for a, b in (record["origin"], record["step"]))
    return native, grid, origin, step


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _check_shape(tensor: torch.Tensor, expected: tuple[int, int], name: str) -> None:
    if tuple(tensor.shape[-2:]) != expected:
        raise ValueError(f"{name} must have the shape (..., {expected[0]}, {expected[1]}), got {tuple(tensor.shape)}")
