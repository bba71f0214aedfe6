# SPDX-License-Identifier: Apache-2.0
"""Command line: run a study and write its CSV, its tables into a page, and its figures."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.figure import draw_quality, draw_sheet, draw_tradeoff
from benchmarks.counterfactual.measure import MEASURES
from benchmarks.counterfactual.phantoms import CONCEPT_COLUMNS, phantom_task
from benchmarks.counterfactual.real import REAL_TASKS, real_task
from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.studies import STUDIES, Table, ceiling, iterations, run_rows
from benchmarks.counterfactual.tables import insert, markdown, write_csv
from benchmarks.counterfactual.task import Task, apply

__all__ = ["main"]

PANELS = (
    ("seconds", "seconds an image", "quality", "oracle's quality gained"),
    ("rank_main", "re-identified (rank 3)", "agreement", "flips the oracle confirms"),
    ("truth_ratio", "error to the truth / doing nothing", "survival", "flips that survive"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    task = _task(options)
    setup = Setup(options.device, options.threads, options.seed)
    work = options.work / task.name
    for study in options.study:
        if study == "iterations":
            table = iterations(task, setup, work)
        else:
            table = run_rows(task, STUDIES[study], setup, work, options.rows, seeds=study == "methods")
            if study == "methods" and "image" in task.cases.truth:
                table.add("ceiling: true standard plane", *ceiling(task))
        stem = f"{task.name}_{study}"
        write_csv(options.out / f"{stem}.csv", table.labels, table.rows)
        tables = markdown(table.labels, table.rows, MEASURES)
        command = describe_command("benchmarks.counterfactual", arguments)
        note = (
            f"{len(task.cases)} cases; {describe_machine(options.device, options.threads)} Intervals: 95 %, bootstrap"
        )
        text = f"{tables}\n{note} over subjects. Command: `{command}`; figures: `{stem}.csv`."
        page = options.out / f"{task.name}.md"
        if page.is_file() and f"<!-- {study}: begin -->" in page.read_text(encoding="utf-8"):
            insert(page, study, text)
        else:
            (options.out / f"{stem}.md").write_text(f"# {task.name}: {study}\n\n{text}\n", encoding="utf-8")
        if task.name == "phantoms":
            _draw(options.out, stem, study, task, table)
        sys.stdout.write(tables + "\n")


def _task(options: argparse.Namespace) -> Task:
    overrides = dict(options.set)
    if options.task == "phantoms":
        return phantom_task(options.bundle, split=options.split or "test", count=options.count, overrides=overrides)
    missing = [f"--{name}" for name in ("tables", "models") if getattr(options, name) is None]
    if missing:
        raise SystemExit(f"--task {options.task} needs {' and '.join(missing)}: see docs/benchmarks.")
    return real_task(
        options.task,
        options.tables,
        options.models,
        split=options.split or "val",
        count=options.count,
        overrides=overrides,
    )


def _draw(out: Path, stem: str, study: str, task: Task, table: Table) -> None:
    """Draw what a study of phantoms has to show; never called for real images."""
    draw_sheet(out / f"{stem}.png", task.cases, table.labels, table.results)
    if study == "methods":
        draw_tradeoff(out / f"{stem}_tradeoff.png", table.labels, table.rows, PANELS)
    if study == "iterations":
        names = list(CONCEPT_COLUMNS)
        columns = list(CONCEPT_COLUMNS.values())
        before, after = (
            apply(lambda images: task.oracle(images)["concepts"], images)[:, columns]
            for images in (task.cases.image, table.results[-1].image)
        )
        draw_quality(out / f"{stem}_quality.png", names, before, after)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counterfactual", description=__doc__)
    studies = (*STUDIES, "iterations")
    parser.add_argument("--bundle", default="diffice", help="bundle whose networks and settings are compared")
    parser.add_argument("--study", nargs="+", choices=studies, default=["methods"], help="default: methods")
    parser.add_argument("--task", choices=("phantoms", *REAL_TASKS), default="phantoms", help="what is explained")
    parser.add_argument("--count", type=int, default=64, help="number of cases (default 64)")
    parser.add_argument("--split", help="split of the cases (default: test of the phantoms, val of real images)")
    parser.add_argument("--rows", nargs="+", help="only these rows of the study")
    parser.add_argument("--tables", type=Path, help="folder with the tables of a real task")
    parser.add_argument("--models", type=Path, help="folder with the networks of a real task")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], help="id of the config: ID=JSON, repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of tables and figures")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder of stored results")
    return parser


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


if __name__ == "__main__":
    main()
