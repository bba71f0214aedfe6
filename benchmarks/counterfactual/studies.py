# SPDX-License-Identifier: Apache-2.0
"""The studies: methods compared, speed options, noise level versus guidance, pass by pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.counterfactual.measure import measure
from benchmarks.counterfactual.phantoms import CONCEPT_COLUMNS
from benchmarks.counterfactual.rows import ABLATION, FEW_STEPS, METHODS, SPEED, Row, select, toward_own_class
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.tables import Figure
from benchmarks.counterfactual.task import Cases, Task, apply
from medcf.metrics.quality import QualityBin, quality_by_input

__all__ = ["STUDIES", "Table", "iterations", "quality_against_input", "run_rows", "uncomputed"]

logger = logging.getLogger(__name__)

#: Rows of each study that compares settings.
STUDIES: dict[str, Sequence[Row]] = {
    "methods": METHODS,
    "speed": SPEED,
    "ablation": ABLATION,
    "few_steps": FEW_STEPS,
}
NUM_PASSES = 5


class Table:
    """Labels, figures and results of a study's rows."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.rows: list[dict[str, Figure]] = []
        self.results: list[Result] = []
        self.drawn: list[int] = []

    def add(self, label: str, figures: dict[str, Figure], result: Result, drawn: bool = True) -> None:
        """Append a row, which figures show if it is ``drawn``."""
        if drawn:
            self.drawn.append(len(self.labels))
        self.labels.append(label)
        self.rows.append(figures)
        self.results.append(result)

    def pictures(self) -> Table:
        """Return the rows that figures show."""
        shown = Table()
        for index in self.drawn:
            shown.add(self.labels[index], self.rows[index], self.results[index])
        return shown


def run_rows(
    task: Task, rows: Sequence[Row], setup: Setup, work: Path, names: Sequence[str] | None = None, seeds: bool = False
) -> Table:
    """Run and measure the rows of a study.

    Args:
        task: cases and judges.
        rows: methods and settings.
        setup: where to run.
        work: folder of stored results.
        names: only these rows.
        seeds: run methods with a second seed as well, for the agreement of the two, and measure what the class
            contributes where the run toward the own class is among the rows.
    """
    table = Table()
    for row in select(rows, names):
        cases = task.own_class_cases if row.toward_own_class else task.cases
        result = obtain(row, task.recipe, cases, setup, work)
        again = own = None
        if seeds and row.repeat:
            again = obtain(row, task.recipe, cases, replace(setup, seed=setup.seed + 1), work)
        if seeds and toward_own_class(row) in rows and "image" in task.cases.truth:
            own = obtain(toward_own_class(row), task.recipe, task.own_class_cases, setup, work)
        figures = measure(task, result, again, own)
        drawn = row.num_seeds == 1 and (not row.control or row.name in ("unchanged", "attack"))
        table.add(row.label, without_cost(figures) if row in ABLATION else figures, result, drawn)
        logger.info("%s: measured", row.label)
    return table


def uncomputed(cases: Cases, images: Tensor) -> Result:
    """Put images (N, 1, *spatial) that no method made of the cases into the form of a result."""
    count = len(cases)
    return Result(
        image=images,
        trajectory=torch.stack([cases.image, images], dim=1),
        confidences=torch.full((count, 2), float("nan")),
        flipped=torch.ones(count, dtype=torch.bool),
        unchanged=torch.zeros(count, dtype=torch.bool),
        evaluations=torch.zeros(count, dtype=torch.long),
        seconds=float("nan"),
        peak_mib=float("nan"),
    )


def without_cost(figures: dict[str, Figure]) -> dict[str, Figure]:
    """Leave out time, network evaluations and memory for rows that are not about them."""
    return {key: value for key, value in figures.items() if key not in ("seconds", "evaluations", "peak_mib")}


def iterations(task: Task, setup: Setup, work: Path) -> Table:
    """Measure every iterate of Diff-ICE run for all its passes (the paper's Table 2): cases do not leave early."""
    row = Row(
        "five_passes",
        "five passes",
        {"shared_options#num_iterations": NUM_PASSES, "shared_options#confidence_threshold": None},
    )
    result = obtain(row, task.recipe, task.cases, setup, work)
    table = Table()
    for number in range(1, result.trajectory.shape[1]):
        iterate = replace(
            result,
            image=result.trajectory[:, number],
            flipped=apply(task.classifier, result.trajectory[:, number]).argmax(1) == task.target,
            seconds=float("nan"),
        )
        table.add(f"pass {number}", without_cost(measure(task, iterate)), iterate)
    return table


def quality_against_input(task: Task, result: Result, bins: int = 4) -> tuple[str, dict[str, tuple[Tensor, Tensor]]]:
    """Compare what the oracle's scores gain with what the input had (the paper's Fig. 4).

    Args:
        task: a task with an oracle.
        result: counterfactuals.
        bins: number of bins of the input's score in [0, 1].

    Returns:
        A Markdown table of the mean gains by bin, and by name the scores (N,) of inputs and counterfactuals.
    """
    inputs, after = (apply(task.oracle_scores, images) for images in (task.cases.image, result.image))
    columns = {"quality": -1, **CONCEPT_COLUMNS}
    scores = {name: (inputs[:, column], after[:, column]) for name, column in columns.items()}
    lines = []
    for name, (before, reached) in scores.items():
        binned = quality_by_input(before, reached - before, bins, groups=task.cases.subject)
        if not lines:
            lines = [f"| score gained, by the score of the input | {' | '.join(_edges(row) for row in binned)} |"]
            lines.append("| --- |" + " --- |" * len(binned))
        lines.append(f"| {name} | {' | '.join(_gain(row) for row in binned)} |")
    return "\n".join(lines), scores


def _edges(row: QualityBin) -> str:
    return f"{row.low:.2f} to {row.high:.2f}"


def _gain(row: QualityBin) -> str:
    if not row.count:
        return "-"
    low, high = row.interval
    between = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""  # too few cases for an interval
    return f"{row.mean:+.2f}{between} ({row.count})"
