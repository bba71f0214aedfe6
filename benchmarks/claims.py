# SPDX-License-Identifier: Apache-2.0
"""Traces every figure of the README to its command, its interval and the committed table that has it.

``python -m benchmarks.claims`` writes ``docs/claims.md``. The README's numbers are read from it, never repeated here: a
cell of its tables must be the rounded figure of a CSV, a number in its sentences must stand on the page named below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.counterfactual.tables import Figure, read_csv

__all__ = ["Claim", "claims", "page", "uncovered"]

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:\.\d+)?(?!\w)")


@dataclass(frozen=True)
class Source:
    """A table of the README and the CSV behind it.

    Attributes:
        csv: the CSV in docs/benchmarks; a page of the same stem without the study holds it, too.
        command: what writes it.
        columns: heading in the README to keys of the CSV, one per number of a cell.
        rows: label in the README to the label in the CSV.
    """

    csv: str
    command: str
    columns: dict[str, tuple[str, ...]]
    rows: dict[str, str]


SOURCES = (
    Source(
        "controlcg_methods.csv",
        "python -m benchmarks.brain --count 32",
        {
            "flips f": ("flips",),
            "judge confirms": ("agreement",),
            "re-identified": ("rank_inner",),
            "ventricles, slope and r": ("ventricles_slope", "ventricles_r"),
            "error / doing nothing, where a structure changes": ("truth_changed",),
            "elsewhere": ("truth_same",),
        },
        {
            "ControlCG here": "ControlCG, the bundle's default (strength 0.6, w = 3)",
            "generated result only": "default, reconstruction not subtracted",
            "as published (from pure noise)": "strength 1.0 (paper), w = 3, not subtracted",
            "DDIM inversion, w = 10": "DDIM inversion, 500 of 1000, w = 10",
            "regenerated in its own class": "control: regenerated in its own class",
        },
    ),
    Source(
        "phantoms_methods.csv",
        "python -m benchmarks.counterfactual --bundle diffice",
        {
            "flips f": ("flips",),
            "judge confirms": ("agreement",),
            "flips survive disturbances": ("survival",),
            "identity lost": ("lost_identity",),
            "error / doing nothing": ("truth_ratio",),
        },
        {
            "Diff-ICE": "Diff-ICE, the bundle's default",
            "Diff-ICE, mean of 4 seeds": "Diff-ICE, the bundle's default, mean of 4 seeds",
            "edit-friendly inversion": "edit-friendly inversion",
            "Direct Inversion": "Direct Inversion",
            "DiME": "DiME",
            "SDEdit with CFG": "SDEdit with CFG",
            "gradient attack": "control: gradient attack",
            "input blurred": "control: input blurred by 1 pixels",
            "Diff-ICE without f, mean of 4 seeds": "control: Diff-ICE, the bundle's default, mean of 4 seeds, λ_c = 0",
        },
    ),
)

#: Numbers in the README's sentences and headings: its words, a page, and the words there that must hold the same one.
SENTENCES = (
    (r"(\d+) seconds of a quiet machine", "docs/results/diffice.md", r"took (\d+) seconds on two cores"),
    (r"(\d+) phantoms, each to its other class", "docs/benchmarks/controlcg.md", r"benchmarks\.brain --count (\d+)"),
    (r"the same (\d+) heads", "docs/benchmarks/phantoms.md", r"^(\d+) cases; Python"),
)

#: What is no figure: code, link targets, versions and licenses, the 0 of a predicted image's symbol.
EXCLUDED = (r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)", r"Python \d+(\.\d+)? or later", r"Apache-2\.0", "\u0302" + r"0")


@dataclass(frozen=True)
class Claim:
    """A figure of the README.

    Attributes:
        where: row and column.
        shown: as the README shows it, such as "97 %".
        figure: as the CSV has it.
        source: the table.
    """

    where: tuple[str, str]
    shown: str
    figure: Figure
    source: Source

    @property
    def agrees(self) -> bool:
        """Whether the README shows the figure, rounded to its own digits."""
        percent = "%" in self.shown
        number = self.shown.replace("%", "").strip()
        digits = len(number.partition(".")[2])
        return f"{self.figure.value * (100 if percent else 1):.{digits}f}" == number


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _tables(text: str) -> Iterator[list[list[str]]]:
    """Yield the tables of a page whose rows hold numbers outside of code."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        heading, _, *rows = (_cells(line) for line in block.splitlines())
        if any(NUMBER.search(_plain(cell)) for row in rows for cell in row[1:]):
            yield [heading, *rows]


def _plain(text: str) -> str:
    """Remove what is no figure."""
    for pattern in EXCLUDED:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return text


def claims(readme: str) -> list[Claim]:
    """Return the figures of the README's tables.

    Raises:
        ValueError: if a table, row or column of the README has no source above, or the CSV lacks the figure.
    """
    found = []
    for heading, *rows in _tables(readme):
        fitting = [source for source in SOURCES if set(heading[1:]) <= set(source.columns)]
        if not fitting:
            raise ValueError(f"README: no source in benchmarks/claims.py has the columns {heading[1:]}: add it.")
        source = fitting[0]
        figures = dict(zip(*read_csv(ROOT / "docs" / "benchmarks" / source.csv), strict=True))
        for label, *cells in rows:
            if label not in source.rows:
                raise ValueError(f"README: the row {label!r} has no source in benchmarks/claims.py: add it.")
            for column, cell in zip(heading[1:], cells, strict=True):
                shown = re.findall(NUMBER.pattern + r"(?: ?%)?", cell)
                keys = source.columns[column] if shown else ()
                for number, key in zip(shown, keys, strict=True):
                    figure = figures[source.rows[label]].get(key)
                    if figure is None:
                        raise ValueError(f"README: {label}, {column}: {source.csv} has no {key} there.")
                    found.append(Claim((label, column), number, figure, source))
    return found


def uncovered(readme: str) -> list[str]:
    """Return the README's lines with numbers that are neither a table's figures nor on the page that must hold them."""
    rows = [row for _, *table in _tables(readme) for row in table]
    text = "\n".join(line for line in readme.splitlines() if not line.startswith("|") or _cells(line) not in rows)
    for words, page_name, there in SENTENCES:
        page_text = (ROOT / page_name).read_text(encoding="utf-8")
        held = set(re.findall(there, page_text, flags=re.MULTILINE))
        text = re.sub(words, lambda match, held=held: "" if match[1] in held else match[0], text)
    return [line for line in _plain(text).splitlines() if NUMBER.search(line)]


def _number(figure: Figure) -> str:
    if figure.low != figure.low or figure.low == figure.high:  # NaN, or no spread
        return f"{figure.value:.3g}"
    return f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"


def page(readme: str) -> str:
    """Write the page: each figure of the README with its interval, its table and its command."""
    lines = [
        "# The README's figures and where they come from",
        "",
        "Written by `python -m benchmarks.claims`. A test fails if the README holds a number that no committed table",
        "or page has, or rounds it otherwise. Intervals: 95 %, over subjects; shares as fractions.",
    ]
    found = claims(readme)
    for source in SOURCES:
        stem = source.csv.partition("_")[0]
        lines += ["", f"## [{source.csv}](benchmarks/{source.csv}), on the page [{stem}.md](benchmarks/{stem}.md)", ""]
        lines += [f"Command: `{source.command}`", "", "| claim | README | figure with interval | cases |"]
        lines += ["| --- | --- | --- | --- |"]
        for claim in found:
            if claim.source is source:
                where, figure = ": ".join(claim.where), claim.figure
                lines.append(f"| {where} | {claim.shown} | {_number(figure)} | {figure.count} |")
    lines += ["", "## In sentences", "", "| README | page |", "| --- | --- |"]
    for words, name, _ in SENTENCES:
        match = re.search(words, readme)
        if match:
            lines.append(f"| {match[0]} | [{name}]({name.removeprefix('docs/')}) |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (ROOT / "docs" / "claims.md").write_text(page(readme), encoding="utf-8")


if __name__ == "__main__":
    main()
