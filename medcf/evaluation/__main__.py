# SPDX-License-Identifier: Apache-2.0
"""Score a table of anybody's counterfactuals, or the results folder of a run: ``python -m medcf.evaluation TABLE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medcf.evaluation.run import finite, refuse_foreign
from medcf.evaluation.score import score_table, show_scores
from medcf.runtime.atomic import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None uses those of the process.

    Returns:
        Exit status: 0 if any row was measured.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        if options.output is not None:
            refuse_foreign(options.output, "choose another file with --output")
        found = score_table(
            options.table,
            options.metrics,
            by=options.by,
            bins=options.bins,
            structures=dict(options.structures),
            dataset_dir=options.dataset_dir,
            truth=options.truth,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(show_scores(found))
    if options.output is not None:
        write_json(options.output, finite(found))
    return 0 if found["cases"] else 1


def _structure(text: str) -> tuple[str, int]:
    """Take NAME=LABEL apart."""
    name, _, label = text.partition("=")
    if not name or not label.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} names no label: write NAME=LABEL, such as cavum=3")
    return name, int(label)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medcf.evaluation", description=__doc__)
    parser.add_argument(
        "table",
        type=Path,
        help="CSV or JSON with the columns input and counterfactual, or a run's output_dir; see docs/metrics.md",
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="default: all that the columns allow")
    parser.add_argument(
        "--by", nargs="+", default=[], metavar="COLUMN", help="also measure subgroups: size, scanner, ..."
    )
    parser.add_argument("--bins", type=int, default=3, help="quantiles of a --by column of numbers (default 3)")
    parser.add_argument(
        "--structures", nargs="+", type=_structure, default=[], metavar="NAME=LABEL", help="labels in the segmentations"
    )
    parser.add_argument("--dataset_dir", type=Path, help="folder to which paths are relative (default: the table's)")
    parser.add_argument("--truth", type=Path, metavar="DIR", help="true images of a run's cases, named like the inputs")
    parser.add_argument("--output", type=Path, help="JSON file for figures, failures and the values of every case")
    return parser


if __name__ == "__main__":
    sys.exit(main())
