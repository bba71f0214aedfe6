# SPDX-License-Identifier: Apache-2.0
"""From a method's result on the network's grid to a case's images and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import aff2axcodes

from medcf.data import GridRecord, get_spacing, grid_record
from medcf.data.image import geometry, meta_of
from medcf.data.resample import resample_labels
from medcf.inference.attribution import SIGNS, Attribution, organ_on
from medcf.inference.case_result import CaseResult, Writer
from medcf.transforms import AddDifference
from medcf.transforms.difference import shown_original

__all__ = ["case_result", "score_row"]


def case_result(
    item: Mapping[str, Any],
    pred: torch.Tensor,
    native: Mapping[str, torch.Tensor],
    output: Mapping[str, Any],
    *,
    all_steps: bool | None = None,
    writers: Sequence[Writer] = (),
) -> CaseResult:
    """Collect a case's images on its own matrix, and its scores.

    Args:
        item: the prepared case: ``image`` (1, *grid), ``case``, ``file``.
        pred: the counterfactual (1, *grid).
        native: ``pred`` and ``difference`` (1, *native), from the postprocessing.
        output: the explainer's results: ``trajectory`` (L + 1, 1, *grid), ``confidences``, ...; after several seeds
            also ``expected`` and ``spread`` (1, *grid), ``num_seeds``, ``seeds_flipped`` and ``confidence_expected``.
        all_steps: map the whole trajectory back; None does so only for pictures.
        writers: writers for the result.
    """
    record = grid_record(item["image"])
    shown = shown_original(record)
    original = native["pred"] if shown is None else shown
    plain = original.as_subclass(torch.Tensor).float()[0]
    changed, difference = (native[name].as_subclass(torch.Tensor).float()[0] for name in ("pred", "difference"))
    if all_steps or (all_steps is None and plain.ndim == 2):
        trajectory = AddDifference()(output["trajectory"][: int(output["iterations"]) + 1, 0], item["image"])[0]
    else:
        trajectory = None
    labels, spread, expected = output.get("segmentation"), None, None
    if "spread" in output:
        spread = record.back(output["spread"].cpu())[0] / 2
        expected = [each[0] for each in AddDifference()(output["expected"].cpu(), item["image"])]
    mapped: dict[str, Any] = {}
    if "organ" in output:
        change = (difference if expected is None else expected[1]).numpy()
        mapped["organ"] = organ_on(output["organ"], record.back)
        mapped["attribution"] = Attribution.of(change, mapped["organ"], output["attribution_sign"])
    back = np.linalg.inv(record.matrix)
    return CaseResult(
        case=str(item["case"]),
        path=Path(item["file"]),
        original=plain.numpy(),
        counterfactual=changed.numpy(),
        difference=difference.numpy(),
        trajectory=None if trajectory is None else trajectory.numpy(),
        affine=geometry(original)[0],
        source_format=str(meta_of(original).get("source_format", "")),
        files=tuple(map(Path, item.get("files", ()))),
        spacing=get_spacing(original),
        segmentation=None if labels is None else resample_labels(labels.cpu().numpy(), back, record.native),
        expected=None if expected is None else expected[0].numpy(),
        expected_difference=None if expected is None else expected[1].numpy(),
        spread=None if spread is None else spread.numpy(),
        **mapped,
        region=_region(record) if plain.ndim == 2 else None,
        window=record.intensity,
        mask=None if record.mask is None else record.mask.numpy()[0],
        row=score_row(item, output, record, difference)
        | _seed_columns(record, output, spread, expected)
        | _organ_columns(output, mapped),
        on_grid={"image": item["image"], "pred": pred},
        writers=writers,
    )


def score_row(
    item: Mapping[str, Any], output: Mapping[str, Any], record: GridRecord, difference: torch.Tensor
) -> dict[str, Any]:
    """Collect a case's scores, only JSON values; unknown numbers are None.

    Args:
        item: the prepared case.
        output: the explainer's results.
        record: the position of its grid.
        difference: (*native), in fractions of the full intensity range.

    Returns:
        Column name to value.
    """
    confidences = [_number(value) for value in output["confidences"]][: int(output["iterations"]) + 1]
    meta = getattr(item["image"], "meta", {})
    row: dict[str, Any] = {
        "case": str(item["case"]),
        "file": str(item["file"]),
        "format": str(meta.get("source_format", "")),
        **(_picture_columns(record) if len(record.native) == 2 else _volume_columns(record)),
        "target": int(output["target"]),
        "label_before": int(output["label_before"]),
        "label_after": int(output["label_after"]),
        "confidence_before": confidences[0],
        "confidence_after": confidences[-1],
        "flipped": bool(output["flipped"]),
        "unchanged": bool(output["unchanged"]),
        "scale": _number(output["scale"]),
        "iterations": int(output["iterations"]),
        "num_function_evaluations": _count(output["num_function_evaluations"]),
        "mean_absolute_difference": _number(_mean_magnitude(difference, _subject(record))),
    }
    if len(record.native) == 2:
        row["overlay_fraction"] = _number(float(meta.get("overlay_fraction", 0.0)))
    for scores in (output.get("extras", {}), output.get("novelty", {})):
        row |= {name: _number(value) for name, value in scores.items()}
    for name in ("out_of_distribution", "below_floor"):
        if name in row:
            row[name] = bool(row[name])
    row |= {f"confidence_{index}": value for index, value in enumerate(confidences)}
    return row | {"confidences": confidences}


def _seed_columns(
    record: GridRecord,
    output: Mapping[str, Any],
    spread: torch.Tensor | None,
    expected: Sequence[torch.Tensor] | None,
) -> dict[str, Any]:
    """Return what several seeds add: how many flip, how much they differ, and what their mean is."""
    if spread is None or expected is None:
        return {}
    inside = _subject(record)
    return {
        "num_seeds": int(output["num_seeds"]),
        "seeds_flipped": _number(output["seeds_flipped"]),
        "confidence_expected": _number(output["confidence_expected"]),
        "mean_spread": _number(_mean_magnitude(spread, inside)),
        "mean_expected_difference": _number(_mean_magnitude(expected[1], inside)),
    }


def _organ_columns(output: Mapping[str, Any], mapped: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much of the picture the organ of the map is, and the sign of the map."""
    if not mapped:
        return {}
    sign = SIGNS[int(output["attribution_sign"])]
    return {"organ_fraction": _number(float(mapped["organ"].mean())), "attribution_sign": sign}


def _mean_magnitude(difference: torch.Tensor, inside: torch.Tensor) -> float:
    """Return the mean of |difference| over the subject, plane by plane."""
    planes = zip(difference, inside, strict=True)
    total = sum(float(plane[kept].abs().sum(dtype=torch.float64)) for plane, kept in planes)
    return total / int(torch.count_nonzero(inside))


def _picture_columns(record: GridRecord) -> dict[str, Any]:
    """Return frame, size and spacing of a picture, with rows and columns as on a screen."""
    rows, columns = (int(np.abs(record.matrix[:2, axis]).argmax()) for axis in range(2))
    spacing = None if record.image is None else get_spacing(record.image)
    return {
        "frame": int(meta_of(record.image).get("frame", 0)),
        "rows": record.native[rows],
        "columns": record.native[columns],
        "spacing_row_mm": _number(spacing[rows]) if spacing else None,
        "spacing_column_mm": _number(spacing[columns]) if spacing else None,
    }


def _volume_columns(record: GridRecord) -> dict[str, Any]:
    """Return size, spacing, orientation and intensity range of a volume."""
    affine = np.eye(4) if record.image is None else geometry(record.image)[0]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    columns: dict[str, Any] = {f"size_{axis}": n for axis, n in zip("ijk", record.native, strict=True)}
    columns |= {f"spacing_{axis}_mm": _number(mm) for axis, mm in zip("ijk", spacing, strict=True)}
    columns["orientation"] = "".join(str(code) for code in aff2axcodes(affine))
    return columns | {"black": _number(record.intensity[0]), "white": _number(record.intensity[1])}


def _subject(record: GridRecord) -> torch.Tensor:
    """Return the area for a case's means, bool (*native): the subject, or without a mask the part the network saw."""
    if record.mask is not None and record.mask.any():
        return record.mask[0]
    return record.back(torch.ones(1, *record.grid))[0] >= 0.5


def _region(record: GridRecord) -> tuple[int, int, int, int]:
    """Return first column and row, end column and row of the part of a picture that the grid covers."""
    first, end = [0, 0], [0, 0]
    for axis in range(2):
        source = int(np.abs(record.matrix[:2, axis]).argmax())
        origin, step = record.matrix[source, 3], record.matrix[source, axis]
        ends = sorted((origin - step / 2, origin + step * (record.grid[axis] - 0.5)))
        first[source] = max(round(ends[0] + 0.5), 0)
        end[source] = min(round(ends[1] + 0.5), record.native[source])
    return first[0], first[1], end[0], end[1]


def _count(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def _number(value: Any) -> float | None:
    """Round to float32 precision; None if unknown."""
    return round(float(value), 7) if math.isfinite(value) else None
