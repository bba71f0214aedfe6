# SPDX-License-Identifier: Apache-2.0
"""The handler that writes finished cases and remembers failed ones."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from nibabel.orientations import aff2axcodes

from medcf.data import get_spacing, grid_record
from medcf.inference.case_result import CaseResult
from medcf.inference.nifti_writer import NiftiWriter
from medcf.inference.run_folder import Failure, RunFolder

__all__ = ["CaseWriter", "score_row"]

logger = logging.getLogger(__name__)

Writer = Callable[[CaseResult, Path], None]


class CaseWriter:
    """Writes every case of `CounterfactualEvaluator`, one folder each, and marks it as done.

    Args:
        run_folder: the run's output folder, opened.
        writers: called with the case and its folder, in this order; defaults to `NiftiWriter`.
    """

    def __init__(self, run_folder: RunFolder, writers: Sequence[Writer] | None = None) -> None:
        self.run_folder = run_folder
        self.writers: Sequence[Writer] = (NiftiWriter(),) if writers is None else writers

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of an iteration; those that an interrupted session finished stay as they are."""
        state: Any = engine.state
        for failure in state.failures:
            self.run_folder.fail(failure)
        done = set(self.run_folder.done())
        for item, output in zip(state.batch, state.output, strict=True):
            if item["case"] in done:
                continue
            started = time.perf_counter()
            result = _result(item, output)
            try:
                self.run_folder.write(result.case, partial(self._write, result))
            except Exception as error:
                self.run_folder.fail(Failure(item["file"], "write", *_reason(error)))
                continue
            result.row["seconds"] = round(output["seconds"] + time.perf_counter() - started, 3)
            self.run_folder.complete(result.case, result.row)

    def _write(self, result: CaseResult, folder: Path) -> None:
        for writer in self.writers:
            writer(result, folder)


def _reason(error: Exception) -> tuple[str, str]:
    """Say why a case could not be written, and what to do."""
    if isinstance(error, OSError):
        return str(error), "Make room, or choose another --output_dir, and start the same command again."
    logger.debug("writing failed", exc_info=error)
    first_line = (str(error).splitlines() or [""])[0][:200]
    return f"cannot be written ({type(error).__name__}: {first_line})", "Leave the writer out, or report it."


def score_row(item: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    """Collect a case's scores, JSON values only.

    Args:
        item: the case as its dataset gave it.
        output: what the evaluator found.

    Returns:
        Column name to value; unknown numbers are None.
    """
    confidences = [_number(value) for value in output["confidences"]]
    geometry = _volume_columns if item["original"].ndim == 4 else _image_columns
    row: dict[str, Any] = {
        "case": item["case"],
        "file": item["file"],
        "format": str(getattr(item["original"], "meta", {}).get("source_format", "")),
        **geometry(item["original"], output["native"]),
        "target": int(output["target"]),
        "label_before": int(output["label_before"]),
        "label_after": int(output["label_after"]),
        "confidence_before": confidences[0],
        "confidence_after": confidences[-1],
        "flipped": bool(output["flipped"]),
        "unchanged": bool(output["unchanged"]),
        "scale": _number(output["scale"]),
        "iterations": int(output["iterations"]),
        "num_function_evaluations": int(output["num_function_evaluations"]),
        "mean_absolute_difference": _number(_mean_absolute(output["native"])),
    }
    if item["original"].ndim < 4:
        row["overlay_fraction"] = _number(float(getattr(item["image"], "meta", {}).get("overlay_fraction", 0.0)))
    for scores in (output.get("extras", {}), output.get("novelty", {})):
        row |= {name: _number(value) for name, value in scores.items()}
    if "out_of_distribution" in row:
        row["out_of_distribution"] = bool(row["out_of_distribution"])
    row |= {f"confidence_{index}": value for index, value in enumerate(confidences)}
    return row | {"confidences": confidences}


def _image_columns(original: torch.Tensor, native: Mapping[str, Any]) -> dict[str, Any]:
    """Frame, size and spacing of an image (C, H, W)."""
    spacing = get_spacing(original)
    return {
        "frame": int(getattr(original, "meta", {}).get("frame", 0)),
        "rows": int(original.shape[-2]),
        "columns": int(original.shape[-1]),
        "spacing_row_mm": _number(spacing[0]) if spacing else None,
        "spacing_column_mm": _number(spacing[1]) if spacing else None,
    }


def _volume_columns(original: torch.Tensor, native: Mapping[str, Any]) -> dict[str, Any]:
    """Size, spacing, orientation and intensity range of a volume (1, X, Y, Z)."""
    spacing = _voxel_sizes(original)
    columns: dict[str, Any] = {f"size_{axis}": int(n) for axis, n in zip("ijk", original.shape[1:], strict=True)}
    columns |= {f"spacing_{axis}_mm": _number(mm) for axis, mm in zip("ijk", spacing, strict=True)}
    columns["orientation"] = "".join(str(code) for code in aff2axcodes(_affine(original)))
    low, high = native["window"]
    return columns | {"black": _number(low), "white": _number(high)}


def _affine(volume: Any) -> np.ndarray:
    return np.asarray(volume.affine, dtype=np.float64)


def _voxel_sizes(volume: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(mm) for mm in np.linalg.norm(_affine(volume)[:3, :3], axis=0))


def _mean_absolute(native: Mapping[str, Any]) -> float:
    """Mean magnitude of the difference, of a volume within the brain."""
    difference = native["difference"].abs()
    mask = native.get("mask")
    return float(difference.mean() if mask is None or not mask.any() else difference[mask].mean())


def _result(item: Mapping[str, Any], output: Mapping[str, Any]) -> CaseResult:
    native: dict[str, Any] = output["native"]
    original = item["original"]
    further = _volume_parts if original.ndim == 4 else _image_parts
    return CaseResult(
        case=item["case"],
        path=Path(item["file"]),
        original=native["original"].numpy(),
        counterfactual=native["counterfactual"].numpy(),
        difference=native["difference"].numpy(),
        trajectory=native["trajectory"].numpy(),
        affine=_affine(original),
        source_format=str(original.meta.get("source_format", "")),
        row=score_row(item, output),
        **further(item, output),
    )


def _volume_parts(item: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    mask = output["native"].get("mask")
    return {
        "spacing": _voxel_sizes(item["original"]),
        "window": tuple(output["native"]["window"]),
        "mask": None if mask is None else mask.numpy(),
    }


def _image_parts(item: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    record, labels = grid_record(item["image"]), output.get("segmentation")
    return {
        "spacing": get_spacing(item["original"]),
        "segmentation": None if labels is None else _labels_on_matrix(labels.cpu().numpy(), record),
        "region": _region(record),
    }


def _region(record: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Rows and columns of the native matrix that the grid covers."""
    bounds = []
    for axis in range(2):
        origin, step = float(record["origin"][axis]), float(record["step"][axis])
        start, stop = origin - step / 2, origin + step * (int(record["grid_size"][axis]) - 0.5)
        native = int(record["native_size"][axis])
        bounds.append((max(round(start + 0.5), 0), min(round(stop + 0.5), native)))
    (top, bottom), (left, right) = bounds
    return top, left, bottom, right


def _labels_on_matrix(labels: np.ndarray, record: Mapping[str, Any]) -> np.ndarray:
    """Nearest grid label of every native pixel; background outside of the grid."""
    indices, inside = [], []
    for axis in range(2):
        native, grid = int(record["native_size"][axis]), int(record["grid_size"][axis])
        origin, step = float(record["origin"][axis]), float(record["step"][axis])
        position = np.rint((np.arange(native) - origin) / step).astype(int)
        inside.append((position >= 0) & (position < grid))
        indices.append(position.clip(0, grid - 1))
    return labels[:, indices[0][:, None], indices[1][None]] * (inside[0][:, None] & inside[1][None])


def _number(value: float) -> float | None:
    """Round to what float32 holds; None for what is unknown."""
    return round(float(value), 7) if math.isfinite(value) else None
