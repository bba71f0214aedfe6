# SPDX-License-Identifier: Apache-2.0
"""Command line: run a study on brain phantoms and write its CSV, its tables into a page, and its figure."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from benchmarks.brain.figure import draw_dose, draw_sheet
from benchmarks.brain.measure import MEASURES, SUBGROUPS, measure
from benchmarks.brain.rows import STUDIES
from benchmarks.brain.subgroups import subgroup_rows
from benchmarks.brain.task import BrainTask, brain_pairs, brain_task
from benchmarks.command_line import study_parser
from benchmarks.counterfactual.controls import CHOSEN_ON, best_blur, edited
from benchmarks.counterfactual.environment import describe_run
from benchmarks.counterfactual.rows import select, toward_own_class
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.studies import Table, uncomputed, without_cost
from benchmarks.counterfactual.tables import insert_or_write, markdown, write_csv
from medcf.metrics.truth import blurred

__all__ = ["main"]

logger = logging.getLogger(__name__)
PAGE = "controlcg.md"
#: Studies with the own class of every row, and with what no method made.
WITH_CONTROLS = ("methods", "truth")


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
        if study == "subgroups":
            table.labels, table.rows = subgroup_rows(task, setup, options.work / "brain", options.rows)
            _write(options, arguments, task, study, table)
            continue
        for row in select(STUDIES[study], options.rows):
            cases = task.own_class_cases if row.toward_own_class else task.cases
            result = obtain(row, task.recipe, cases, setup, options.work / "brain")
            own = None
            if toward_own_class(row) in STUDIES[study]:
                own = obtain(toward_own_class(row), task.recipe, task.own_class_cases, setup, options.work / "brain")
            table.add(row.label, measure(task, result, own), result, drawn=row.num_seeds == 1 and not row.control)
            logger.info("%s: measured", row.label)
        if study in WITH_CONTROLS:
            sigma = best_blur(*brain_pairs(task.recipe, "val", CHOSEN_ON))
            for label, result in controls(task, sigma):
                table.add(
                    label, without_cost(measure(task, result)), result, drawn=label.startswith("ceiling: the same")
                )
        _write(options, arguments, task, study, table)


def controls(task: BrainTask, blur: float) -> list[tuple[str, Result]]:
    """What no method made: noise as large as a true change, blur, and what is known of the true other state.

    Args:
        task: cases with their truth.
        blur: standard deviation in voxels, chosen on another split.
    """
    image, truth, brain = task.cases.image, task.cases.truth["image"], task.cases.truth["brain"]
    size = float((truth - image)[brain].std())
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * size * brain
    rows = {
        "control: noise as large as the true change": (image + noise).clamp(-1, 1),
        f"control: input blurred by {blur:g} voxels": blurred(image, blur),
        "ceiling: perfect edit of the structures that change": edited(image, truth, task.cases.truth["structure"]),
        "ceiling: the truth with other noise": task.cases.truth["other_noise"],
        "ceiling: the same subject in the other state": truth,
    }
    return [(label, uncomputed(task.cases, images)) for label, images in rows.items()]


def _write(options: argparse.Namespace, arguments: Sequence[str], task: BrainTask, study: str, table: Table) -> None:
    """Write a study's figures, its picture, and its tables into the page if there is one."""
    stem = f"controlcg_{study}"
    write_csv(options.out / f"{stem}.csv", table.labels, table.rows)
    if study in (*WITH_CONTROLS, "exact"):
        shown = table.pictures()
        draw_sheet(options.out / f"{stem}.png", task, shown.labels, shown.results)
    elif study != "subgroups":
        draw_dose(options.out / f"{stem}.png", task, table.labels, table.results)
    tables = markdown(table.labels, table.rows, SUBGROUPS if study == "subgroups" else MEASURES)
    run = describe_run("benchmarks.brain", arguments, options.device, options.threads, stem)
    cases = f"{len(task.cases)} cases, {sum(map(len, task.reference.values()))} reference volumes"
    insert_or_write(options.out / PAGE, study, f"{tables}\n{cases}; {run}", stem, f"ControlCG: {study}")
    sys.stdout.write(tables + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("benchmarks.brain", __doc__, bundle="controlcg", studies=(*STUDIES, "subgroups"))
    parser.add_argument("--count", type=int, default=48, help="number of cases, both classes together (default 48)")
    parser.add_argument(
        "--references", type=int, default=200, help="held-out volumes, both classes together (default 200)"
    )
    parser.add_argument("--split", default="test", help="split of the phantoms (default test)")
    return parser


if __name__ == "__main__":
    main()
