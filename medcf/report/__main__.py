# SPDX-License-Identifier: Apache-2.0
"""Draw a contact sheet of a finished run: ``python -m medcf.report output/diffice/inference --out sheet.png``."""

from __future__ import annotations

import argparse

from medcf.report.contact_sheet import read_run, summary_figure


def main() -> None:
    """Read the run and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m medcf.report", description=__doc__)
    parser.add_argument("run", help="output folder of an inference run")
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--cases", nargs="+", help="cases to show; by default flipped ones, spread evenly over the run")
    parser.add_argument("--count", type=int, default=6, help="number of cases if none are named")
    options = parser.parse_args()
    summary_figure(read_run(options.run, options.cases, options.count)).save(options.out)


if __name__ == "__main__":
    main()
