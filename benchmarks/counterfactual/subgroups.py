# SPDX-License-Identifier: Apache-2.0
"""For whom a method works: its figures by size of the head, and by scanner, from the stored results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.measure import MEASURES, measure
from benchmarks.counterfactual.rows import METHODS, Row, select
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.studies import without_cost
from benchmarks.counterfactual.tables import Figure
from benchmarks.counterfactual.task import Task
from medcf.phantoms import FetalHead
from medcf.phantoms.head.identities import CANDIDATES

__all__ = ["SUBGROUPS", "Group", "group_label", "head_groups", "measure_groups", "quantile_groups", "subgroup_rows"]

logger = logging.getLogger(__name__)

_KEYS = ("flips", "confirmed", "truth_ratio", "truth_organ", "truth_changed", "effectiveness")
#: What is measured of subgroups: validity, and the error by place.
SUBGROUPS = tuple(replace(each, theme="subgroup") for each in MEASURES if each.key in _KEYS)

#: How each column is called, and its unit. The phantoms have no gestational age; the diameter stands in for it.
ATTRIBUTES = {"bpd_mm": ("BPD", "mm"), "depth_mm": ("imaging depth", "mm"), "gain_db": ("gain", "dB")}


@dataclass(frozen=True)
class Group:
    """Some of the cases.

    Attributes:
        label: what they have in common.
        cases: whether each case belongs to it (N,).
    """

    label: str
    cases: Tensor


def quantile_groups(name: str, values: Tensor, unit: str = "", count: int = 3) -> list[Group]:
    """Divide cases into groups of about equal number by a value.

    Args:
        name: what the value is called.
        values: one per case (N,).
        unit: its unit.
        count: number of groups; equal values are never divided, so there may be fewer.

    Returns:
        Groups in the order of their values, each labeled by its smallest and largest one.

    Example:
        >>> [group.label for group in quantile_groups("age", torch.tensor([3.0, 1.0, 2.0, 4.0]), "years", 2)]
        ['age 1 to 2 years', 'age 3 to 4 years']
    """
    values = values.double()
    edges = torch.quantile(values, torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:-1])
    place = torch.bucketize(values, edges)
    groups = []
    for number in range(count):
        inside = place == number
        if inside.any():
            low, high = (float(end) for end in values[inside].aminmax())
            groups.append(Group(f"{name} {low:.3g} to {high:.3g} {unit}".strip(), inside))
    return groups


def head_groups(subjects: Sequence[str]) -> list[Group]:
    """Divide phantom heads (N,), named by their seeds, by each of ``ATTRIBUTES``."""
    heads = [FetalHead(int(subject)) for subject in subjects]
    return [
        group
        for column, (name, unit) in ATTRIBUTES.items()
        for group in quantile_groups(name, torch.tensor([CANDIDATES[column](head) for head in heads]), unit)
    ]


def subgroup_rows(
    task: Task, setup: Setup, work: Path, names: Sequence[str] | None = None
) -> tuple[list[str], list[dict[str, Figure]]]:
    """Measure the subgroups of phantom heads; results that the study of methods has stored are not made again.

    Args:
        task: phantom heads.
        setup: where to run.
        work: folder of stored results.
        names: of the methods; None takes Diff-ICE.

    Returns:
        Labels and figures, all heads first.
    """

    def measured(inside: Tensor, result: Result) -> dict[str, Figure]:
        part = replace(task, cases=task.cases.where(inside))
        return without_cost(measure(part, result, measures=SUBGROUPS))

    rows = select(METHODS, names or ["diffice"])
    return measure_groups(task, rows, head_groups(task.cases.subject), measured, setup, work, "heads")


def measure_groups(
    task: Any,
    rows: Sequence[Row],
    groups: Sequence[Group],
    measured: Callable[[Tensor, Result], dict[str, Figure]],
    setup: Setup,
    work: Path,
    unit: str,
) -> tuple[list[str], list[dict[str, Figure]]]:
    """Measure the stored results of some methods, over all cases and over each group.

    Args:
        task: has ``recipe``, ``cases`` and ``own_class_cases``.
        rows: the methods.
        groups: the groups of cases.
        measured: from the cases of a group (N,), bool, and their results, to figures.
        setup: where to run.
        work: folder of stored results.
        unit: what a case is.

    Returns:
        Labels and figures, all cases first.
    """
    groups = [Group("all", torch.ones(len(task.cases), dtype=torch.bool)), *groups]
    labels, figures = [], []
    for row in rows:
        cases = task.own_class_cases if row.toward_own_class else task.cases
        result = obtain(row, task.recipe, cases, setup, work)
        for group in groups:
            labels.append(group_label(row.label, group, len(rows), unit))
            figures.append(measured(group.cases, result.where(group.cases)))
        logger.info("%s: %d groups measured", row.label, len(groups))
    return labels, figures


def group_label(row: str, group: Group, num_rows: int, unit: str) -> str:
    """Return how a line reads: the group with its number of cases, and the method if there are several."""
    text = f"{group.label} ({int(group.cases.sum())} {unit})"
    return text if num_rows == 1 else f"{row}: {text}"
