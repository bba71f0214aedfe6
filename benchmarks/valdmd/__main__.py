# SPDX-License-Identifier: Apache-2.0
"""Command line: run a study on chest phantoms and write its CSV, its tables into a page, and its picture."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.command_line import study_parser
from benchmarks.counterfactual.environment import describe_run
from benchmarks.counterfactual.figure import draw_sheet
from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.tables import insert_or_write, write_csv
from benchmarks.valdmd.healthy import floor_section, healthy_sections, healthy_sweep, solver_section, subgroup_section
from benchmarks.valdmd.induction import induction_sections, induction_sweep
from benchmarks.valdmd.prompts import prompt_section
from benchmarks.valdmd.sections import Section
from benchmarks.valdmd.task import ChestTask, normal_task, sick_task
from benchmarks.valdmd.zero_shot import zero_shot_section

__all__ = ["main"]

PAGE = "valdmd.md"
#: Studies by their inputs.
ON_SICK = ("healthy", "sweep_healthy", "subgroups", "solvers", "floor")
ON_NORMAL = ("prompts", "induction", "sweep", "zero_shot")
#: Age and disease drawn independently, and devices in half of the cases.
SUBGROUP_DATA: dict[str, Any] = {"confounded": False, "devices": 0.5}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for study in options.study:
        task = _task(options, study)
        _write(options, arguments, task, study, _sections(options, task, study))


def _task(options: argparse.Namespace, study: str) -> ChestTask:
    given: dict[str, Any] = {"split": options.split, "count": options.count, "overrides": dict(options.set)}
    given["cache_dir"] = options.work / "chests"
    if study in ON_NORMAL:
        return normal_task(options.bundle, **given)
    return sick_task(options.bundle, **given, **(SUBGROUP_DATA if study == "subgroups" else {}))


def _sections(options: argparse.Namespace, task: ChestTask, study: str) -> list[Section]:
    if study == "floor":
        return [floor_section(task)]
    if study == "prompts":
        return [prompt_section(task, options.count)]
    setup, work = Setup(options.device, options.threads, options.seed), options.work / "valdmd"
    if study == "healthy":
        return healthy_sections(task, setup, work, options.rows)
    if study == "induction":
        return induction_sections(task, setup, work)
    single = {
        "sweep": induction_sweep,
        "sweep_healthy": healthy_sweep,
        "subgroups": subgroup_section,
        "solvers": solver_section,
        "zero_shot": zero_shot_section,
    }
    return [single[study](task, setup, work)]


def _write(
    options: argparse.Namespace, arguments: Sequence[str], task: ChestTask, study: str, sections: Sequence[Section]
) -> None:
    """Write a study's figures, its picture if it has one, and its tables into the page if there is one."""
    stem = f"valdmd_{study}"
    labels = [label for section in sections for label in section.labels]
    write_csv(options.out / f"{stem}.csv", labels, [row for section in sections for row in section.rows])
    for section in sections:
        if section.pictures:
            shown, results = zip(*section.pictures, strict=True)
            draw_sheet(options.out / f"{stem}.png", task.cases, shown, results)
    tables = "\n".join(section.markdown() for section in sections)
    run = describe_run("benchmarks.valdmd", arguments, options.device, options.threads, stem)
    insert_or_write(options.out / PAGE, study, f"{tables}\n{len(task.cases)} cases; {run}", stem, f"VALD-MD: {study}")
    sys.stdout.write(tables + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("benchmarks.valdmd", __doc__, bundle="valdmd", studies=(*ON_SICK, *ON_NORMAL))
    parser.set_defaults(study=["healthy"])
    parser.add_argument("--count", type=int, default=64, help="number of cases, or of samples a class (default 64)")
    parser.add_argument("--split", default="test", help="split of the phantoms (default test)")
    return parser


if __name__ == "__main__":
    main()
