# SPDX-License-Identifier: Apache-2.0
"""ControlCG on real brain volumes: ``prepare`` the table, ``train`` the networks, ``evaluate`` the counterfactuals."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from benchmarks.brain.real_sets import SETS, prepare, train
from benchmarks.command_line import setting

__all__ = ["main"]

logger = logging.getLogger("benchmarks.brain.real")


def main(arguments: list[str] | None = None) -> None:
    """Run one of the steps."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    real, out = SETS[options.set], options.out / options.set
    if options.step == "prepare":
        for name, count in prepare(options.data, out, real, options.seed).items():
            logger.info("%s: %d volumes", name, count)
    elif options.step == "train":
        for step in options.network or real.steps:
            logger.info("Training %s", step)
            train(real, step, out, dict(options.id))
    else:
        from benchmarks.brain.real_evaluate import evaluate

        evaluate(options.set, out, options.docs, options.limit, options.rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brain.real", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    ready = steps.add_parser("prepare", help="write the table for trainings and evaluation")
    ready.add_argument("--data", type=Path, required=True, help="folder with labels.csv and the volumes")
    ready.add_argument("--seed", type=int, default=0, help="seed of the split by subject")
    training = steps.add_parser("train", help="train the networks with the bundle's configs")
    training.add_argument("--network", nargs="+", help="only these: classifier, judge, segmenter, model")
    training.add_argument("--id", type=setting, action="append", default=[], help="config option: ID=JSON")
    measured = steps.add_parser("evaluate", help="explain the held-out subjects and measure the counterfactuals")
    measured.add_argument("--docs", type=Path, default=Path("docs/benchmarks"), help="folder for page and figures")
    measured.add_argument("--limit", type=int, help="explain only the first N volumes")
    measured.add_argument("--rows", nargs="+", help="only these rows")
    for each in (ready, training, measured):
        each.add_argument("--set", choices=tuple(SETS), required=True)
        each.add_argument("--out", type=Path, default=Path("output/brain_mri"), help="tables, weights, stored results")
    return parser


if __name__ == "__main__":
    main()
