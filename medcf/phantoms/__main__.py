# SPDX-License-Identifier: Apache-2.0
"""Write phantoms to a folder: ``python -m medcf.phantoms fetal_head --out DIR --count N``; also other phantoms."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcf.phantoms.brain.degradation import DegradeBrain
from medcf.phantoms.brain.files import write_brains
from medcf.phantoms.chest.files import write_chests
from medcf.phantoms.head.datasets import SPLITS
from medcf.phantoms.head.files import write_demo
from medcf.phantoms.planes.files import write_planes
from medcf.registry import PHANTOMS, load_plugins


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None uses those of the process.

    Returns:
        Exit status.
    """
    load_plugins()
    parser = _parser()
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count must be at least 1, not {options.count}")
    classes = {"chest_xray": 4, "fetal_planes": 6}.get(options.phantom, 2)
    if options.label is not None and options.label >= classes:
        parser.error(f"--label {options.label}: {options.phantom} has the classes 0 to {classes - 1}")
    if options.site is not None and options.phantom != "fetal_planes":
        parser.error("--site is for fetal_planes")
    if options.phantom == "brain_mri":
        if options.format not in (None, "nifti") or options.overlays or options.color:
            parser.error("brains are written as NIfTI volumes: omit --format, --overlays and --color")
        strengths = {"bias": options.bias, "motion": options.motion, "noise": options.noise}
        write_brains(
            options.out,
            options.split,
            options.count,
            options.label,
            seed=options.seed,
            truth=options.truth,
            transform=DegradeBrain(**strengths, seed=options.seed) if any(strengths.values()) else None,
        )
    elif options.bias or options.motion or options.noise:
        parser.error("--bias, --motion and --noise are for brain_mri")
    elif options.phantom in ("chest_xray", "fetal_planes"):
        if options.format == "all" or options.overlays or options.color:
            parser.error(f"{options.phantom} is written in one format: omit 'all', --overlays and --color")
        sites = {"site": None if options.site == "both" else options.site or "A"}
        chosen: dict[str, Any] = sites if options.phantom == "fetal_planes" else {}
        (write_planes if options.phantom == "fetal_planes" else write_chests)(
            options.out,
            options.split,
            options.count,
            options.label,
            seed=options.seed,
            truth=options.truth,
            kind=options.format or "png",
            **chosen,
        )
    else:
        kind = options.format or "png"
        write_demo(
            options.out,
            options.split,
            options.count,
            options.label,
            ("png", "nifti", "dicom") if kind == "all" else (kind,),
            overlays=options.overlays,
            color=options.color,
            name=options.phantom,
            seed=options.seed,
            truth_dir=options.out / "truth" if options.truth else None,
        )
    sys.stdout.write(f"{options.count} images written to {options.out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m medcf.phantoms", description=__doc__)
    parser.add_argument("phantom", choices=sorted(PHANTOMS.names), help="what to render")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--count", type=int, default=16, help="number of cases (default 16)")
    parser.add_argument(
        "--format", choices=("png", "nifti", "dicom", "all"), help="default png; brains are always nifti"
    )
    parser.add_argument("--split", choices=tuple(SPLITS), default="demo", help="whose subjects to use (default demo)")
    parser.add_argument(
        "--label",
        type=int,
        choices=range(6),
        help="only one class: 0 non-standard, CN or normal, 1 standard, AD or opacity, 2 COVID-19, 3 viral pneumonia; "
        "planes: 0 abdomen, 1 brain, 2 femur, 3 thorax, 4 cervix, 5 other",
    )
    parser.add_argument("--site", choices=("A", "B", "both"), help="planes: whose scanner (default A)")
    parser.add_argument("--overlays", action="store_true", help="burn in text and calipers")
    parser.add_argument("--color", action="store_true", help="with --overlays: yellow marks, RGB files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default 0)")
    parser.add_argument(
        "--truth",
        action="store_true",
        help="also write the truth: the same subjects in the other class, or at the other site",
    )
    for name, what in {"bias": "bias field", "motion": "motion in mm and degrees", "noise": "noise"}.items():
        parser.add_argument(f"--{name}", type=float, default=0.0, help=f"brains: strength of the {what} (default 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
