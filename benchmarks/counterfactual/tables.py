# SPDX-License-Identifier: Apache-2.0
"""Measures by name, their figures with intervals, and the tables they go into: one CSV, and Markdown by theme."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcf.evaluation import AbsentError, Evidence, Figure, Measurement

__all__ = ["Figure", "Measure", "insert", "insert_or_write", "markdown", "measured", "read_csv", "write_csv"]


@dataclass(frozen=True)
class Measure:
    """How a figure is called and printed.

    Attributes:
        key: column of the CSV.
        label: heading in Markdown.
        theme: which table it stands in.
        better: "↑", "↓", or "" where neither end is good.
        digits: decimals, of percent where ``percent``.
        percent: print as percent.
        metric: the metric that gives it, see `medcf.evaluation.Measurement`; text "@name" among its options stands for
            what the task gives by that name. None: measured otherwise.
        scale: factor of the figure.
        absent: what stands in the column where the figure was not measured; "" leaves a column out that no row has.
    """

    key: str
    label: str
    theme: str
    better: str
    digits: int = 2
    percent: bool = False
    metric: str | Mapping[str, Any] | None = None
    scale: float = 1.0
    absent: str = ""

    def of(self, cases: Evidence, given: Mapping[str, Any]) -> Figure | None:
        """Measure it.

        Args:
            cases: what is known of the cases and their counterfactuals.
            given: what options ask for by "@name".

        Returns:
            The figure with its interval over subjects; None where the cases cannot tell.
        """
        entry = {"name": self.metric} if isinstance(self.metric, str) else dict(self.metric or {})
        wanted = {key: value[1:] for key, value in entry.items() if isinstance(value, str) and value[:1] == "@"}
        if not entry or not set(wanted.values()) <= set(given):
            return None
        measurement = Measurement(self.key, entry | {key: given[name] for key, name in wanted.items()})
        try:
            measurement.update(cases)
        except AbsentError:
            return None
        figure = measurement.figure()
        return replace(figure, **{end: self.scale * getattr(figure, end) for end in ("value", "low", "high")})

    @property
    def heading(self) -> str:
        """Label with the arrow of the better direction."""
        return f"{self.label} {self.better}".strip()

    def show(self, figure: Figure | None) -> str:
        """Print a figure with its interval."""
        if figure is None or math.isnan(figure.value):
            return self.absent or "-"
        text = self._number(figure.value)
        if math.isfinite(figure.low) and math.isfinite(figure.high) and figure.low != figure.high:
            text += f" [{self._number(figure.low)}, {self._number(figure.high)}]"
        return text

    def _number(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:.{self.digits}f} %"
        return f"{value:.{self.digits}f}"


def measured(measures: Sequence[Measure], cases: Evidence, given: Mapping[str, Any]) -> dict[str, Figure]:
    """Measure all that the cases can tell, see `Measure.of`; figures by key."""
    figures = {measure.key: measure.of(cases, given) for measure in measures}
    return {key: figure for key, figure in figures.items() if figure is not None}


def write_csv(path: Path, labels: Sequence[str], rows: Sequence[Mapping[str, Figure]]) -> None:
    """Write one line a method with value, interval and count of every figure.

    Args:
        path: the file.
        labels: names of the rows.
        rows: figures by key.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", *(f"{key}{part}" for key in keys for part in ("", "_low", "_high", "_n"))])
        for label, row in zip(labels, rows, strict=True):
            cells: list[str] = []
            for key in keys:
                figure = row.get(key)
                if figure is None:
                    cells += [""] * 4
                else:
                    cells += [f"{number:.6g}" for number in (figure.value, figure.low, figure.high)]
                    cells.append(str(figure.count))
            writer.writerow([label, *cells])


def read_csv(path: Path) -> tuple[list[str], list[dict[str, Figure]]]:
    """Read what ``write_csv`` wrote: labels and figures."""
    labels, rows = [], []
    with path.open(newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            labels.append(line["row"])
            keys = [name[:-2] for name in line if name.endswith("_n")]
            rows.append(
                {
                    key: Figure(
                        float(line[key]), float(line[f"{key}_low"]), float(line[f"{key}_high"]), int(line[f"{key}_n"])
                    )
                    for key in keys
                    if line[key]
                }
            )
    return labels, rows


def markdown(labels: Sequence[str], rows: Sequence[Mapping[str, Figure]], measures: Sequence[Measure]) -> str:
    """Lay figures out as one table per theme, leaving out what no row has.

    Args:
        labels: names of the rows.
        rows: figures by key.
        measures: which figures, in this order.
    """
    parts = []
    for theme in dict.fromkeys(measure.theme for measure in measures):
        shown = [
            measure
            for measure in measures
            if measure.theme == theme and (measure.absent or any(measure.key in row for row in rows))
        ]  # fmt: skip
        if not shown:
            continue
        head = [theme, *(measure.heading for measure in shown)]
        lines = [head, ["---"] * len(head)]
        lines += [[label, *(m.show(row.get(m.key)) for m in shown)] for label, row in zip(labels, rows, strict=True)]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def insert(page: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark: begin -->`` and ``<!-- mark: end -->`` of a page.

    Raises:
        ValueError: the page lacks the marks.
    """
    content = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{page} must hold {begin} and {end} once: the tables go between them.")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def insert_or_write(page: Path, mark: str, text: str, stem: str, title: str) -> None:
    """Put a text into a page with markers, see `insert`, or with a title into ``<stem>.md`` next to it."""
    if page.is_file() and f"<!-- {mark}: begin -->" in page.read_text(encoding="utf-8"):
        insert(page, mark, text)
    else:
        page.with_name(f"{stem}.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
