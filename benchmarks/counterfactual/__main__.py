# SPDX-License-Identifier: Apache-2.0
"""Command line: run a study and write its CSV, its tables into a page, and its figures."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import study_parser
from benchmarks.counterfactual.axiom_study import AXIOMS, axiom_rows
from benchmarks.counterfactual.ceiling import STEPS
from benchmarks.counterfactual.controls import controls
from benchmarks.counterfactual.environment import describe_run
from benchmarks.counterfactual.figure import draw_features, draw_quality, draw_sheet, draw_tradeoff
from benchmarks.counterfactual.measure import MEASURES, measure
from benchmarks.counterfactual.phantoms import phantom_task
from benchmarks.counterfactual.real import REAL_TASKS, real_task
from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.studies import (
    STUDIES,
    Table,
    iterations,
    quality_against_input,
    run_rows,
    without_cost,
)
from benchmarks.counterfactual.subgroups import SUBGROUPS, subgroup_rows
from benchmarks.counterfactual.tables import insert_or_write, markdown, write_csv
from benchmarks.counterfactual.task import Task
from benchmarks.paper_size import measure as measure_paper_size
from benchmarks.paper_size import parse, report
from medcf.networks.feature_extractors import EXTRACTORS, feature_extractor

__all__ = ["main"]

#: Figures of the studies that have their own, and no pictures.
SHOWN = {"axioms": AXIOMS, "subgroups": SUBGROUPS}
PANELS = (
    ("seconds", "seconds per image", "quality", "oracle's quality gained"),
    ("rank_main", "re-identified (rank 3)", "agreement", "flips the oracle confirms"),
    ("truth_ratio", "error to the truth / doing nothing", "survival", "flips that survive"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    task = replace(_task(options), published=_published(options))
    setup = Setup(options.device, options.threads, options.seed)
    work = options.work / task.name
    for study in options.study:
        if study == "axioms":
            table = Table()
            table.labels, table.rows = axiom_rows(task, setup, work, options.rows)
        elif study == "subgroups":
            table = Table()
            table.labels, table.rows = subgroup_rows(task, setup, work, options.rows)
        elif study == "iterations":
            table = iterations(task, setup, work)
        else:
            table = run_rows(task, STUDIES[study], setup, work, options.rows, seeds=study == "methods")
            if study == "methods" and "image" in task.cases.truth:
                for label, result in controls(task, work, ceiling_steps=options.ceiling_steps, threads=options.threads):
                    drawn = label.startswith("ceiling: the true")
                    table.add(label, without_cost(measure(task, result)), result, drawn)
        _write(options, arguments, task, study, table)
    if torch.device(options.device).type == "cuda":
        paper = parse(["--device", options.device, "--amp", "--channels-last"])
        (options.out / "paper_size.md").write_text(report(measure_paper_size(paper), paper), encoding="utf-8")


def _write(options: argparse.Namespace, arguments: Sequence[str], task: Task, study: str, table: Table) -> None:
    """Write a study's figures, its tables into the page if there is one, and on phantoms its pictures."""
    stem = f"{task.name}_{study}"
    write_csv(options.out / f"{stem}.csv", table.labels, table.rows)
    tables = markdown(table.labels, table.rows, SHOWN.get(study, MEASURES))
    if task.name == "phantoms" and study not in SHOWN:
        if study != "speed":  # whose rows look alike
            shown = table.pictures()
            draw_sheet(options.out / f"{stem}.png", task.cases, shown.labels, shown.results)
        if study == "methods":
            draw_tradeoff(options.out / f"{stem}_tradeoff.png", shown.labels, shown.rows, PANELS)
        if study == "iterations":
            gained, scores = quality_against_input(task, table.results[-1])
            draw_quality(options.out / f"{stem}_quality.png", scores)
            tables += f"\n{gained}\n"
    if study == "methods":
        draw_features(options.out / f"{stem}_features.png", task, table.labels, table.results)
    run = describe_run("benchmarks.counterfactual", arguments, options.device, options.threads, stem)
    page = options.out / f"{task.name}.md"
    insert_or_write(page, study, f"{tables}\n{len(task.cases)} cases; {run}", stem, f"{task.name}: {study}")
    sys.stdout.write(tables + "\n")


def _published(options: argparse.Namespace) -> dict[str, Any]:
    """Load the published extractors whose weights were given."""
    files = {name: getattr(options, name) for name in EXTRACTORS}
    return {name: feature_extractor(name, *file) for name, file in files.items() if file is not None}


def _task(options: argparse.Namespace) -> Task:
    overrides = dict(options.set)
    if options.size:
        overrides["spatial_size"] = options.size
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


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(
        "benchmarks.counterfactual", __doc__, bundle="diffice", studies=(*STUDIES, "iterations", *SHOWN)
    )
    parser.add_argument("--task", choices=("phantoms", *REAL_TASKS), default="phantoms", help="images to explain")
    parser.add_argument("--count", type=int, default=64, help="number of cases (default 64)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="grid instead of the bundle's own")
    parser.add_argument("--split", help="split of the cases (default: test for phantoms, val for real images)")
    parser.add_argument(
        "--ceiling-steps",
        type=int,
        default=STEPS,
        help=f"training steps of the regression on pairs, a ceiling (default {STEPS}); 0 leaves it out",
    )
    parser.add_argument("--tables", type=Path, help="folder with the tables of a real task")
    parser.add_argument("--models", type=Path, help="folder with the networks of a real task")
    for name, (_, source) in EXTRACTORS.items():
        told = f"weights of {name}'s features, and optionally their SHA-256. {source}"
        parser.add_argument(f"--{name}", nargs="+", metavar=("FILE", "SHA256"), help=told)
    return parser


if __name__ == "__main__":
    main()
