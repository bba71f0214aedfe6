# SPDX-License-Identifier: Apache-2.0
"""Command line: run a study on brain phantoms and write its CSV, its tables into a page, and its figure."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.brain.figure import draw_dose, draw_sheet
from benchmarks.brain.measure import MEASURES, measure
from benchmarks.brain.rows import STUDIES
from benchmarks.brain.task import BrainTask, brain_task
from benchmarks.counterfactual.__main__ import _setting
from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.rows import select
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.studies import Table, without_cost
from benchmarks.counterfactual.tables import insert, markdown, write_csv

__all__ = ["main"]

logger = logging.getLogger(__name__)
PAGE = "controlcg.md"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    setup = Setup(options.device, options.threads, options.seed)
    torch.set_num_threads(setup.threads)
    task = brain_task(
        options.bundle,
        split=options.split,
        count=options.count,
        references=options.references,
        overrides=dict(options.set),
        cache_dir=options.work / "brains",
    )
    for study in options.study:
        table = Table()
        for row in select(STUDIES[study], options.rows):
            cases = replace(task.cases, target=task.label) if row.own_class else task.cases
            result = obtain(row, task.recipe, cases, setup, options.work / "brain")
            table.add(row.label, measure(task, result), result)
            logger.info("%s: measured", row.label)
        if study == "methods":
            for label, result in controls(task):
                table.add(label, without_cost(measure(task, result)), result)
        _write(options, arguments, task, study, table)


def controls(task: BrainTask) -> list[tuple[str, Result]]:
    """What no method made: noise as large as a true change, and the true other state of every subject."""
    truth, brain = task.cases.truth["image"], task.cases.truth["brain"]
    size = float((truth - task.cases.image)[brain].std())
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * size * brain
    return [
        ("control: noise as large as the true change", _result(task, (task.cases.image + noise).clamp(-1, 1))),
        ("ceiling: the same subject in the other state", _result(task, truth)),
    ]


def _result(task: BrainTask, images: torch.Tensor) -> Result:
    count = len(images)
    return Result(
        image=images,
        trajectory=torch.stack([task.cases.image, images], dim=1),
        confidences=torch.full((count, 2), float("nan")),
        flipped=torch.ones(count, dtype=torch.bool),
        unchanged=torch.zeros(count, dtype=torch.bool),
        evaluations=torch.zeros(count, dtype=torch.long),
        seconds=float("nan"),
        peak_mib=float("nan"),
    )


def _write(options: argparse.Namespace, arguments: Sequence[str], task: BrainTask, study: str, table: Table) -> None:
    """Write a study's figures, its picture, and its tables into the page if there is one."""
    stem = f"controlcg_{study}"
    write_csv(options.out / f"{stem}.csv", table.labels, table.rows)
    if study == "methods":
        draw_sheet(options.out / f"{stem}.png", task, table.labels, table.results)
    else:
        draw_dose(options.out / f"{stem}.png", task, table.labels, table.results)
    tables = markdown(table.labels, table.rows, MEASURES)
    machine = describe_machine(options.device, options.threads)
    text = (
        f"{tables}\n{len(task.cases)} cases, {sum(map(len, task.reference.values()))} reference volumes; {machine} "
        f"Intervals: 95 %, over subjects. Command: `{describe_command('benchmarks.brain', arguments)}`; figures: "
        f"`{stem}.csv`."
    )
    page = options.out / PAGE
    if page.is_file() and f"<!-- {study}: begin -->" in page.read_text(encoding="utf-8"):
        insert(page, study, text)
    else:
        (options.out / f"{stem}.md").write_text(f"# ControlCG: {study}\n\n{text}\n", encoding="utf-8")
    sys.stdout.write(tables + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brain", description=__doc__)
    parser.add_argument("--bundle", default="controlcg", help="bundle whose networks and settings are compared")
    parser.add_argument("--study", nargs="+", choices=tuple(STUDIES), default=["methods"], help="default: methods")
    parser.add_argument("--count", type=int, default=48, help="number of cases of both classes (default 48)")
    parser.add_argument("--references", type=int, default=200, help="held-out volumes of both classes (default 200)")
    parser.add_argument("--split", default="test", help="split of the phantoms (default test)")
    parser.add_argument("--rows", nargs="+", help="only these rows of the study")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], help="id of the config: ID=JSON, repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder of tables and figures")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder of stored results")
    return parser


if __name__ == "__main__":
    main()
