# SPDX-License-Identifier: Apache-2.0
"""Command line: ``prepare`` the tables, ``evaluate`` the trained bundle, ``report`` the figures in a page."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from benchmarks.command_line import setting

__all__ = ["main"]

logger = logging.getLogger("benchmarks.fetal_us")


def main(arguments: list[str] | None = None) -> None:
    """Run one of the steps."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    if options.step == "prepare":
        from benchmarks.fetal_us.prepare import prepare

        for name, count in prepare(options.data, options.out, options.seed).items():
            logger.info("%s: %d images", name, count)
    elif options.step == "evaluate":
        from benchmarks.fetal_us.evaluate import evaluate

        figures, images, results = evaluate(
            options.tables,
            options.models,
            split=options.split,
            overrides={f"inferer#{name}": value for name, value in options.set},
            limit=options.limit,
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        logger.info("Wrote %s", options.out)
        if options.sheet is not None:
            from benchmarks.fetal_us.sheet import draw_sheet

            draw_sheet(options.sheet, images, results)
            logger.info("Wrote %s; it shows real images and stays with you.", options.sheet)
    else:
        from benchmarks.fetal_us.report import insert

        insert(options.page, json.loads(options.figures.read_text(encoding="utf-8")))
        logger.info("Wrote the figures into %s", options.page)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetal_us", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    prepare = steps.add_parser("prepare", help="write the tables and head masks that the training configs read")
    prepare.add_argument("--data", type=Path, required=True, help="folder with labels.csv, images and masks")
    prepare.add_argument("--out", type=Path, default=Path("output/fetal_us"))
    prepare.add_argument("--seed", type=int, default=0, help="seed of the split by subject")
    evaluate = steps.add_parser("evaluate", help="explain the planes of a split and measure the counterfactuals")
    evaluate.add_argument("--tables", type=Path, default=Path("output/fetal_us"), help="folder written by prepare")
    evaluate.add_argument("--models", type=Path, default=Path("output/fetal_us/models"), help="trained weights")
    evaluate.add_argument("--out", type=Path, default=Path("output/fetal_us/figures.json"))
    evaluate.add_argument("--split", choices=("val", "test"), default="val", help="test is for choosing settings")
    evaluate.add_argument("--limit", type=int, help="explain only the first N inputs")
    evaluate.add_argument(
        "--set", type=setting, action="append", default=[], help="option of the inferer: NAME=JSON, repeatable"
    )
    evaluate.add_argument("--sheet", type=Path, help="also draw inputs, iterates and differences into this PNG")
    report = steps.add_parser("report", help="write the figures into a page, between its markers")
    report.add_argument("--figures", type=Path, default=Path("output/fetal_us/figures.json"))
    report.add_argument("--page", type=Path, default=Path("docs/results/fetal_us.md"))
    return parser


if __name__ == "__main__":
    main()
