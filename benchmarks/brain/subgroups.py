# SPDX-License-Identifier: Apache-2.0
"""For whom a method works: its figures by severity of the disease and by age, from the stored results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.brain.measure import CLASSES, measure_group
from benchmarks.brain.rows import METHODS
from benchmarks.brain.task import BrainTask
from benchmarks.counterfactual.rows import select
from benchmarks.counterfactual.run import Result, Setup
from benchmarks.counterfactual.subgroups import Group, measure_groups, quantile_groups
from benchmarks.counterfactual.tables import Figure
from medcf.phantoms import BrainMRI

__all__ = ["brain_groups", "subgroup_rows"]


def brain_groups(task: BrainTask) -> list[Group]:
    """Divide brains by direction and severity of the input's disease, two groups for each class, and by age."""
    groups = []
    for label, name in enumerate(CLASSES):
        inside = (task.label == label).nonzero()[:, 0]
        if not len(inside):
            continue
        title = f"{name} to {CLASSES[1 - label]}, severity"
        for group in quantile_groups(title, task.cases.truth["severity"][inside], count=2):
            chosen = torch.zeros(len(task.cases), dtype=torch.bool)
            chosen[inside[group.cases]] = True
            groups.append(Group(group.label, chosen))
    ages = torch.tensor([BrainMRI(int(subject)).age for subject in task.cases.subject])
    return [*groups, *quantile_groups("age", ages, "years")]


def subgroup_rows(
    task: BrainTask, setup: Setup, work: Path, names: Sequence[str] | None = None
) -> tuple[list[str], list[dict[str, Figure]]]:
    """Measure the subgroups; results that the study of methods has stored are not made again.

    Args:
        task: brain phantoms.
        setup: where to run.
        work: folder of stored results.
        names: of the methods; None takes ControlCG.

    Returns:
        Labels and figures, all brains first.
    """

    def measured(inside: Tensor, result: Result) -> dict[str, Figure]:
        part = replace(task, cases=task.cases.where(inside), label=task.label[inside])
        return measure_group(part, result)

    rows = select(METHODS, names or ["controlcg"])
    return measure_groups(task, rows, brain_groups(task), measured, setup, work, "brains")
