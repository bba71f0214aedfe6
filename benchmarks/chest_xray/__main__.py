# SPDX-License-Identifier: Apache-2.0
"""Command line: write the tables for the training configs and the benchmark."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from benchmarks.chest_xray.prepare import prepare

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Write the tables."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chest_xray", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and images")
    parser.add_argument("--out", type=Path, default=Path("output/chest_xray"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the split by subject")
    options = parser.parse_args(arguments)
    for name, count in prepare(options.data, options.out, options.seed).items():
        logging.getLogger("benchmarks.chest_xray").info("%s: %d images", name, count)


if __name__ == "__main__":
    main()
