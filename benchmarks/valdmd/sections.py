# SPDX-License-Identifier: Apache-2.0
"""Sections of a study: rows with their figures, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure, Measure, markdown
from benchmarks.counterfactual.task import Cases
from medcf.metrics.exclusions import summarize

__all__ = ["Section", "summary"]


@dataclass
class Section:
    """Rows that share their columns.

    Attributes:
        measures: the columns.
        labels: names of the rows.
        rows: figures by key.
        pictures: results to draw, with their labels.
    """

    measures: Sequence[Measure]
    labels: list[str] = field(default_factory=list)
    rows: list[dict[str, Figure]] = field(default_factory=list)
    pictures: list[tuple[str, Result]] = field(default_factory=list)

    def add(self, label: str, figures: dict[str, Figure]) -> None:
        """Append a row."""
        self.labels.append(label)
        self.rows.append(figures)

    def markdown(self) -> str:
        """Return its tables."""
        return markdown(self.labels, self.rows, self.measures)


def summary(values: Tensor, cases: Cases, kept: Tensor | None = None) -> Figure:
    """Return the mean of values (N,) with its interval over subjects; shares of cases if they are Boolean.

    Args:
        values: one per case; NaN where a case does not count.
        cases: whose they are.
        kept: cases (N,) that count; None counts all.
    """
    left_out = torch.zeros(len(values), dtype=torch.bool) if kept is None else ~kept
    columns = values.double().masked_fill(left_out, torch.nan)
    found = summarize(columns, groups=cases.subject[: len(values)], share=values.dtype == torch.bool)
    return Figure(found.mean, *found.interval, found.count)
