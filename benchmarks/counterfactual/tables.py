# SPDX-License-Identifier: Apache-2.0
"""Figures with intervals, and the tables they go into: one CSV, and Markdown by theme."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figure", "Measure", "insert", "insert_or_write", "markdown", "read_csv", "write_csv"]


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        value: the figure; NaN where nothing entered.
        low: lower end of its 95 % interval; NaN where there is none.
        high: upper end.
        count: cases that entered.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    count: int = 0


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
    """

    key: str
    label: str
    theme: str
    better: str
    digits: int = 2
    percent: bool = False

    @property
    def heading(self) -> str:
        """Label with the arrow of the better direction."""
        return f"{self.label} {self.better}".strip()

    def show(self, figure: Figure | None) -> str:
        """Print a figure with its interval."""
        if figure is None or math.isnan(figure.value):
            return "-"
        text = self._number(figure.value)
        if math.isfinite(figure.low) and math.isfinite(figure.high) and figure.low != figure.high:
            text += f" [{self._number(figure.low)}, {self._number(figure.high)}]"
        return text

    def _number(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:.{self.digits}f} %"
        return f"{value:.{self.digits}f}"


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
            if measure.theme == theme and any(measure.key in row for row in rows)
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
    """Put a text into a page that has the marks, see `insert`, or else with a title into ``<stem>.md`` beside it."""
    if page.is_file() and f"<!-- {mark}: begin -->" in page.read_text(encoding="utf-8"):
        insert(page, mark, text)
    else:
        page.with_name(f"{stem}.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
