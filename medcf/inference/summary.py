# SPDX-License-Identifier: Apache-2.0
"""The end of a run: its outcome, in one file and in a few lines on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from medcf.inference.run_folder import RunFolder
from medcf.runtime.error_report import FilesFailed
from medcf.runtime.errors import Failure
from medcf.runtime.owned import NOTICE
from medcf.runtime.ranks import collect, rank

__all__ = ["end_run", "finish_run", "format_summary", "summarize"]

logger = logging.getLogger(__name__)


def finish_run(run_folder: RunFolder, writers: Sequence[Any] = ()) -> dict[str, Any]:
    """End a run like a command does: the last expression of ``run`` in a bundle.

    Args:
        run_folder: the run's folder, in which every case is done or has failed.
        writers: those of the cases; the ``finish`` of those that have one writes what belongs to several cases.

    Returns:
        The content of ``summary.json``; empty on all processes except the main one.

    Raises:
        FilesFailed: if files failed; counts them. Everything else has been written by then.
    """
    summary = end_run(run_folder, writers)
    if summary:
        logger.info("%s", format_summary(summary, str(run_folder.path)))
    if summary.get("failed"):
        raise FilesFailed(
            f"{summary['failed']} of {summary['files']} files failed, the others are done; "
            f"{run_folder.path / 'failures.csv'} gives the reasons and remedies."
        )
    return summary


def end_run(run_folder: RunFolder, writers: Sequence[Any] = ()) -> dict[str, Any]:
    """Write the tables of a run; under torchrun the main process waits for the others and does this for all of them.

    Args:
        run_folder: the run's folder.
        writers: see `finish_run`.

    Returns:
        The content of ``summary.json``; empty on all processes except the main one.
    """
    shards = collect("finish", run_folder.shard())
    if rank() > 0:
        return {}
    run_folder.merge(shards[1:])
    for writer in writers:
        if finish := getattr(writer, "finish", None):
            run_folder.add_folders(finish(run_folder))
    failures = list(run_folder.failures.values())
    summary = summarize(run_folder.rows(), failures) | {"seconds_of_this_session": round(run_folder.seconds(), 1)}
    run_folder.close(summary)
    return summary


def summarize(rows: Sequence[Mapping[str, Any]], failures: Sequence[Failure] = ()) -> dict[str, Any]:
    """Count a run's outcomes.

    The flip rate is over the cases that were not in the target class; those that already were, and failed files, are
    left out. Cases out of distribution count in ``flip_rate`` and are left out of ``flip_rate_in_distribution``.

    Args:
        rows: scores of the finished cases.
        failures: files without scores.

    Returns:
        JSON values; a mean over no case is None, and so are the entries on distribution if nothing was tested.
    """
    entered = [row for row in rows if not row["unchanged"]]
    unfamiliar = _unfamiliar(rows)
    familiar = [] if unfamiliar is None else [row for row in entered if row["case"] not in unfamiliar]
    failed = sorted({failure.file for failure in failures})
    return {
        "notice": NOTICE,
        "files": len({row["file"] for row in rows} | set(failed)),
        "cases": len(rows),
        "failed": len(failed),
        "flipped": sum(row["flipped"] for row in entered),
        "flip_rate": _mean([row["flipped"] for row in entered]),
        "flip_rate_in_distribution": _mean([row["flipped"] for row in familiar]),
        "entered": [row["case"] for row in entered],
        "left_out": {
            "already of the target class": [row["case"] for row in rows if row["unchanged"]],
            "failed": failed,
        },
        "out_of_distribution": unfamiliar,
        "mean_confidence_before": _mean([row["confidence_before"] for row in entered]),
        "mean_confidence_after": _mean([row["confidence_after"] for row in entered]),
        "mean_absolute_difference": _mean([row["mean_absolute_difference"] for row in entered]),
        "mean_function_evaluations": _mean(
            [row["num_function_evaluations"] for row in entered if row["num_function_evaluations"] is not None]
        ),
        "mean_seconds": _mean([row["seconds"] for row in rows]),
    }


def format_summary(summary: Mapping[str, Any], folder: str) -> str:
    """Format a summary for the terminal.

    Args:
        summary: from `summarize`.
        folder: folder of the results.

    Returns:
        A few lines.
    """
    entered, unchanged = len(summary["entered"]), len(summary["left_out"]["already of the target class"])
    lines = [
        ("cases done", str(summary["cases"])),
        ("flipped", f"{summary['flipped']} of {entered}"),
        ("already of the target class", str(unchanged)),
    ]
    if entered:
        before, after = summary["mean_confidence_before"], summary["mean_confidence_after"]
        lines.append(("mean confidence in the target", f"{before:.3f} -> {after:.3f}"))
    if summary["mean_seconds"] is not None:
        lines.append(("seconds per case", f"{summary['mean_seconds']:.1f}"))
    unfamiliar = summary["out_of_distribution"]
    lines += [
        ("out of distribution", "not tested" if unfamiliar is None else str(len(unfamiliar))),
        ("failed files", str(summary["failed"])),
        ("panels", f"{folder}/<case>/panel.png"),
        ("scores", f"{folder}/scores.csv"),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(["Counterfactuals (SYNTHETIC, not for diagnosis)", *(f"  {n:<{width}}  {v}" for n, v in lines)])


def _unfamiliar(rows: Sequence[Mapping[str, Any]]) -> list[str] | None:
    tested = [row for row in rows if "out_of_distribution" in row]
    return [row["case"] for row in tested if row["out_of_distribution"]] if tested or not rows else None


def _mean(values: Sequence[float | bool]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
