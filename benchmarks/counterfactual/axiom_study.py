# SPDX-License-Identifier: Apache-2.0
"""What a method must leave as it is: the axioms, which need no truth and so run on real images, too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.counterfactual.rows import METHODS, Row, select
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import Task, apply
from medcf.metrics import axioms
from medcf.metrics.exclusions import calls_target, summarize

__all__ = ["AXIOMS", "CYCLES", "axiom_figures", "axiom_rows"]

logger = logging.getLogger(__name__)

#: After how many runs composition and reversibility are measured. Each method runs 3 * 5 times.
CYCLES = (1, 5)
_THEME = "axioms"

AXIOMS = (
    Measure("flips", "flips of f", _THEME, "↑", 0, True),
    *(Measure(f"composition_{n}", f"composition, {n} times", _THEME, "↓", 3) for n in CYCLES),
    *(Measure(f"reversibility_{n}", f"there and back, {n} times", _THEME, "↓", 3) for n in CYCLES),
    Measure("minimality", "distance to the input", _THEME, "↓", 3),
    Measure("regenerated", "of it, regeneration", _THEME, "↓", 2),
    Measure("other_factors", "other factors, SD", _THEME, "↓", 2),
    Measure("other_factors_own", "the same toward the own class", _THEME, "↓", 2),
)


def axiom_figures(task: Task, row: Row, setup: Setup, work: Path) -> dict[str, Figure]:
    """Run a method there and back, and measure what it must leave as it is.

    Args:
        task: cases, with or without a truth.
        row: the method.
        setup: where to run.
        work: folder of stored results.

    Returns:
        Figures by the keys of ``AXIOMS``, with intervals over subjects.
    """
    asked = replace(row, toward_own_class=True)  # which also runs images that are in the wanted class
    made: list[Tensor] = []

    def explain(images: Tensor, target: Tensor) -> Tensor:
        found = obtain(asked, task.recipe, replace(task.cases, image=images, target=target), setup, work).image
        if bool((target == task.target).all()):  # first of the inputs themselves
            made.append(found)
        return found

    own = torch.full((len(task.cases),), 1 - task.target)
    recover = task.recover
    known = {} if recover is None else {"recover": lambda x: apply(recover, x), "std": task.parameter_std}
    columns = axioms(explain, task.cases.image, own, 1 - own, cycles=CYCLES, **known)
    before, after = (apply(task.classifier, images) for images in (task.cases.image, made[0]))
    flipped = calls_target(after, task.target).double()
    columns["flips"] = flipped.masked_fill(calls_target(before, task.target), torch.nan)
    found = {name: summarize(each, groups=task.cases.subject, share=name == "flips") for name, each in columns.items()}
    return {name: Figure(each.mean, *each.interval, each.count) for name, each in found.items()}


def axiom_rows(
    task: Task, setup: Setup, work: Path, names: Sequence[str] | None = None
) -> tuple[list[str], list[dict[str, Figure]]]:
    """Measure the axioms of the methods and of doing nothing.

    Args:
        task: cases.
        setup: where to run.
        work: folder of stored results.
        names: only these rows.

    Returns:
        Labels and figures of the rows.
    """
    rows = [row for row in METHODS if row.num_seeds == 1 and (not row.control or row.name == "unchanged")]
    labels, figures = [], []
    for row in select(rows, names):
        figures.append(axiom_figures(task, row, setup, work))
        labels.append(row.label)
        logger.info("%s: axioms measured", row.label)
    return labels, figures
