# SPDX-License-Identifier: Apache-2.0
"""Write phantoms to a folder: ``python -m medcf.data.phantoms fetal_head --out DIR --count N``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medcf.data.phantoms.datasets import SPLITS
from medcf.data.phantoms.write import write_demo
from medcf.registry import PHANTOMS, load_plugins


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit status.
    """
    load_plugins()
    parser = argparse.ArgumentParser(prog="python -m medcf.data.phantoms", description=__doc__)
    parser.add_argument("phantom", choices=sorted(PHANTOMS.names), help="what to render")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--count", type=int, default=16, help="number of cases (default 16)")
    parser.add_argument("--format", choices=("png", "nifti", "dicom", "all"), default="png", help="default png")
    parser.add_argument("--split", choices=tuple(SPLITS), default="demo", help="whose subjects (default demo)")
    parser.add_argument("--label", type=int, choices=(0, 1), help="only non-standard (0) or standard (1) planes")
    parser.add_argument("--overlays", action="store_true", help="burn in text and calipers")
    parser.add_argument("--color", action="store_true", help="with --overlays: yellow marks, RGB files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default 0)")
    parser.add_argument("--truth", action="store_true", help="write truth.csv and the paired planes to OUT/truth")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count must be at least 1, not {options.count}")
    formats = ("png", "nifti", "dicom") if options.format == "all" else (options.format,)
    records = write_demo(
        options.out,
        options.split,
        options.count,
        options.label,
        formats,
        overlays=options.overlays,
        color=options.color,
        name=options.phantom,
        seed=options.seed,
        truth_dir=options.out / "truth" if options.truth else None,
    )
    sys.stdout.write(f"{len(records)} images written to {options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
