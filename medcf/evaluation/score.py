# SPDX-License-Identifier: Apache-2.0
"""Score a table of anybody's counterfactuals: every figure with its interval over subjects, also by subgroup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medcf.evaluation.evidence import AbsentError
from medcf.evaluation.measurement import Measurement
from medcf.evaluation.results import read_results
from medcf.evaluation.table import COLUMNS, TableRow, read_rows
from medcf.registry import METRICS, load_plugins
from medcf.runtime.errors import Failure, UnreadableImage

__all__ = ["score_table", "show_scores", "table_metrics"]

_TRUTH = {"y_pred": "{on}", "y": "image_true", "image": "image"}
_CLASSES_SHOWN = 8  # a numeric column with more values is divided into bins


def table_metrics(structures: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return what a table of files can be measured by, as entries of `Measurement` by figure.

    Args:
        structures: label of each structure in the segmentations, by name.
    """
    changed = {"mask": "structure_change"}
    shown: dict[str, dict[str, Any]] = {
        **{name: {"name": name} for name in ("mse", "psnr", "ssim")},
        "sharpness_to_input": {"name": "sharpness", "needs": {"y_pred": "{on}", "y": "image"}},
        "flipped": {"name": "mean", "of": "flipped"},
        "confirmed": {"name": "mean", "of": "confirmed"},
        **{name: {"name": name} for name in ("relative_truth_error", "effectiveness", "amplification")},
        "class_effectiveness": {"name": "class_effectiveness"},
        "error_in_organ": {"name": "relative_truth_error", "needs": {**_TRUTH, "mask": "organ"}},
        "error_where_structures_change": {"name": "relative_truth_error", "needs": {**_TRUTH, **changed}},
        **{name: {"name": name} for name in ("sharpness", "truth_similarity", "truth_similarity_gain")},
        "change_auprc": {"name": "change_auprc", "needs": {"y_pred": "difference(pred)", "y": "structure_change"}},
    }
    for name, label in structures.items():
        shown[f"dice_{name}"] = {"name": "mean", "of": f"dice({name})"}
        shown[f"side_{name}"] = {"name": "lateralized", "label": label}
    return shown


def score_table(
    table: str | Path,
    metrics: Sequence[str] | None = None,
    *,
    by: Sequence[str] = (),
    bins: int = 3,
    structures: Mapping[str, int] | None = None,
    dataset_dir: str | Path | None = None,
    truth: str | Path | None = None,
) -> dict[str, Any]:
    """Measure every row of a table; a row that cannot be read or measured is one failure, and the others go on.

    Args:
        table: CSV or JSON with the columns ``input`` and ``counterfactual``, and any of ``truth``, ``own`` (the result
            toward the input's own class), ``segmentation_input``, ``segmentation_counterfactual``,
            ``segmentation_truth``, ``organ`` (a mask), ``subject``, ``case``, ``flipped``, ``confirmed``, or
            ``target``, ``class_input`` and ``class_counterfactual``. Images may have any format that `medcf.read`
            takes. Or the results folder of a run, see `medcf.evaluation.results.read_results`.
        metrics: figures of `table_metrics`, or names of metrics; None takes all that the columns allow.
        by: columns by which to divide the cases; numbers with many values become ``bins`` quantiles.
        bins: number of quantiles.
        structures: label of each structure in the segmentations, by name.
        dataset_dir: folder to which paths are relative; None takes that of the table.
        truth: of a results folder, the folder with the true images.

    Returns:
        ``cases`` and ``subjects``; ``figures``, each with ``mean``, ``interval`` (None with fewer than five subjects,
        except of shares) and ``cases``; ``by`` column and group the same; ``left_out``, the cases of a run that were
        already of the target class; ``failures``; and ``per_case``, a list of rows.

    Raises:
        FileNotFoundError: if the table does not exist.
        ValueError: if it cannot be parsed, or a metric or column is unknown, or no row can provide what a metric needs.
    """
    structures = structures or {}
    rows, left_out = _rows(table, dataset_dir, truth)
    known = dict.fromkeys(key for row in rows for key in row.cells)
    if unknown := [name for name in by if name not in known]:
        raise ValueError(f"The table has no column {unknown[0]!r}; its columns are {', '.join(known)}.")
    entries = _chosen(metrics, structures)
    if bins < 1:
        raise ValueError(f"bins={bins}: give at least one.")
    groups = {name: _groups([row.cells.get(name) for row in rows], bins) for name in by}
    parts: dict[tuple[str, str], dict[str, Measurement]] = {}
    failures: list[dict[str, Any]] = []
    per_case: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for index, row in enumerate(rows):
        try:
            cases = row.evidence(structures)
        except Exception as error:
            failures.append({"row": row.number, **vars(_failure(row, error))})
            continue
        line: dict[str, Any] = {"case": row.case, "subject": row.subject}
        for heading, entry in entries.items():
            keys = [("", ""), *((name, labels[index]) for name, labels in groups.items())]
            try:
                for key in keys:
                    made = parts.setdefault(key, {})
                    made.setdefault(heading, Measurement(heading, entry)).update(cases)
            except AbsentError as error:
                absent[heading] = str(error)
            except Exception as error:
                failures.append({"row": row.number, **vars(_failure(row, error, heading))})
            else:
                line[heading] = float(parts["", ""][heading].parts[()][0].per_case()[-1])
        per_case.append(line)
    _expect_measured(metrics, per_case, absent)
    found = {key: _figures(made) for key, made in parts.items()}
    return {
        "cases": len(per_case),
        "subjects": len({line["subject"] for line in per_case}),
        "figures": found.pop(("", ""), {}),
        "by": {
            name: {group: found.get((name, group), {}) for group in _ordered(labels)} for name, labels in groups.items()
        },
        "left_out": left_out,
        "failures": failures,
        "per_case": per_case,
    }


def _rows(
    table: str | Path, dataset_dir: str | Path | None, truth: str | Path | None
) -> tuple[list[TableRow], list[str]]:
    """Read the rows of a table, or of a results folder with the cases that it leaves out."""
    if Path(table).is_dir():
        if dataset_dir is not None:
            raise ValueError("a results folder holds its own images: leave out dataset_dir")
        return read_results(table, truth)
    if truth is not None:
        raise ValueError("truth goes with a results folder: give a table a column 'truth' instead")
    return read_rows(table, dataset_dir), []


def _chosen(metrics: Sequence[str] | None, structures: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the entries of the wanted metrics."""
    possible = table_metrics(structures)
    if metrics is None:
        return possible
    load_plugins()
    if unknown := [name for name in metrics if name not in possible and name not in METRICS]:
        names = ", ".join([*possible, *sorted(set(METRICS.names) - set(possible))])
        raise ValueError(f"{unknown[0]!r} is not one of the metrics {names}.")
    return {name: possible.get(name, {"name": name}) for name in metrics}


def _expect_measured(
    metrics: Sequence[str] | None, per_case: Sequence[Mapping[str, Any]], absent: Mapping[str, str]
) -> None:
    """Refuse a metric that was asked for by name and that no row could provide for."""
    for name in metrics or ():
        if per_case and name in absent and not any(name in line for line in per_case):
            needed = [column for column, evidence in COLUMNS.items() if f"'{evidence}'" in absent[name]]
            remedy = f" Add the column {needed[0]!r} to the table." if needed else ""
            raise ValueError(f"{absent[name]}{remedy}")


def _groups(cells: Sequence[str | None], bins: int) -> list[str]:
    """Return the group of each case: the value itself, or of many numbers the quantile."""
    values = [_number(cell) for cell in cells]
    numbers = np.array([value for value in values if not math.isnan(value)])
    if len(numbers) < sum(cell is not None for cell in cells) or len(set(numbers)) <= _CLASSES_SHOWN:
        return ["(none)" if cell is None else cell for cell in cells]
    edges = np.quantile(numbers, np.linspace(0, 1, bins + 1))
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    places = np.searchsorted(edges[1:-1], values, side="left")
    return ["(none)" if math.isnan(value) else names[place] for value, place in zip(values, places, strict=True)]


def _ordered(labels: Sequence[str]) -> list[str]:
    """Sort groups, numbers by their size."""
    return sorted(set(labels), key=lambda label: (_number(label.split(" to ")[0]), label))


def _number(text: str | None) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _failure(row: TableRow, error: Exception, metric: str = "") -> Failure:
    if isinstance(error, UnreadableImage):
        return Failure.of(error)
    reason = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
    if not metric:
        return Failure(row.case, "read", reason, "")
    remedy = "" if isinstance(error, ValueError) else "Check its images, or name the other figures with --metrics."
    return Failure(row.case, "measure", f"{metric}: {reason}", remedy)


def _figures(made: Mapping[str, Measurement]) -> dict[str, dict[str, Any]]:
    """Return the figures of those that measured any case."""
    return {name: each.figure().shown() for name, each in made.items() if () in each.parts}


def show_scores(found: Mapping[str, Any]) -> str:
    """Lay the scores out as text: one table, then one by subgroup, then the failures, one line each."""
    width = max((len(name) for name in found["figures"]), default=6)
    lines = [f"{found['cases']} cases of {found['subjects']} subjects; 95 % intervals over subjects"]
    lines += [f"{name:<{width}}  {_shown(figure)}" for name, figure in found["figures"].items()]
    for column, groups in found["by"].items():
        for group, figures in groups.items():
            lines += ["", f"{column} = {group}"]
            lines += [f"{name:<{width}}  {_shown(figure)}" for name, figure in figures.items()]
    if found["left_out"]:
        lines += ["", f"left out, already of the target class: {len(found['left_out'])}"]
    if found["failures"]:
        lines += ["", f"failures: {len(found['failures'])}"]
    for each in found["failures"]:
        remedy = f". {each['remedy']}" if each["remedy"] else ""
        lines.append(f"row {each['row']}: {Path(each['file']).name}: {each['reason']}{remedy}")
    return "\n".join(lines) + "\n"


def _shown(figure: Mapping[str, Any]) -> str:
    if figure["interval"] is not None:
        low, high = figure["interval"]
        interval = f"[{low:.3f}, {high:.3f}]"
    else:
        interval = "n too small" if figure["cases"] else ""
    return f"{figure['mean']:>9.3f}  {interval:<18}  {figure['cases']:>5} cases"
