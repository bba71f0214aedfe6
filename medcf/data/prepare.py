# SPDX-License-Identifier: Apache-2.0
"""Write the datalist of a public data set, split by patient: ``python -m medcf.data.prepare NAME FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from medcf.data.public_sets import PUBLIC_SETS
from medcf.runtime.atomic import write_csv

__all__ = ["deal_folds", "main", "prepare"]

_PARTS = 10


def prepare(name: str, folder: str | Path, *, val: int = 1, test: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """List the images of a public data set.

    Args:
        name: key of ``PUBLIC_SETS``.
        folder: where it was unpacked.
        val: tenths of the subjects for ``val``.
        test: tenths of the subjects for ``test``.
        seed: of the split.

    Returns:
        Rows for `medcf.data.find_cases` and the trainings: ``file`` relative to the folder, ``label`` (index),
        ``class_name``, ``subject``, ``split``, and what else the set tells. All images of a subject have one split, and
        each has about the same share of every class.

    Raises:
        FileNotFoundError: if the folder does not hold the data set as its owners pack it.
        ValueError: if the name or the split is impossible, or there are too few subjects to split.
    """
    if name not in PUBLIC_SETS:
        raise ValueError(f"{name!r} is none of the data sets {', '.join(PUBLIC_SETS)}.")
    if min(val, test) < 0 or val + test >= _PARTS:
        raise ValueError(f"val={val} and test={test} tenths leave nothing to train on.")
    root, layout = Path(folder), PUBLIC_SETS[name]
    listed = [row for row in layout.rows(root) if row["label"] in layout.classes] if root.is_dir() else []
    rows = [row for row in listed if (root / row["file"]).exists()]
    if not rows:
        raise FileNotFoundError(f"{root} does not hold {name} ({layout.source}): {layout.layout} must lie in it.")
    labels = [layout.classes.index(row["label"]) for row in rows]
    if min(len({row["subject"] for row in rows}), max(Counter(labels).values())) < _PARTS:
        raise ValueError(
            f"{root} holds fewer than {_PARTS} subjects, or of no class {_PARTS} images: too few to split."
        )
    names = ["val"] * val + ["test"] * test + ["train"] * (_PARTS - val - test)
    splits = [names[fold] for fold in deal_folds(labels, [row["subject"] for row in rows], _PARTS, seed)]
    return [
        {"file": row["file"], "label": label, "class_name": row["label"], "subject": row["subject"], "split": split}
        | {key: value for key, value in row.items() if key not in ("file", "label", "subject")}
        for row, label, split in zip(rows, labels, splits, strict=True)
    ]


def deal_folds(labels: Sequence[int], subjects: Sequence[str], count: int, seed: int = 0) -> list[int]:
    """Deal images into folds with about the same share of each label, all of a subject into one.

    Args:
        labels: class of each image.
        subjects: whose it is.
        count: number of folds.
        seed: seed of the dealing.

    Returns:
        The fold of each image, from 0.
    """
    folds = np.zeros(len(labels), dtype=int)
    dealer = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for fold, (_, members) in enumerate(dealer.split(labels, labels, subjects)):
        folds[members] = fold
    return folds.tolist()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the datalist and say what it holds."""
    parser = argparse.ArgumentParser(prog="python -m medcf.data.prepare", description=__doc__)
    parser.add_argument("name", choices=PUBLIC_SETS)
    parser.add_argument("folder", type=Path, help="where the data set was unpacked")
    parser.add_argument("--out", type=Path, help="the datalist; datalist.csv in the folder if not given")
    parser.add_argument("--val", type=int, default=1, help="tenths of the subjects for validation")
    parser.add_argument("--test", type=int, default=2, help="tenths of the subjects for the test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        rows = prepare(options.name, options.folder, val=options.val, test=options.test, seed=options.seed)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    out = options.out or options.folder / "datalist.csv"
    write_csv(out, rows)
    for split in ("train", "val", "test"):
        members = [row for row in rows if row["split"] == split]
        counts = Counter(row["class_name"] for row in members)
        told = ", ".join(f"{name} {counts[name]}" for name in PUBLIC_SETS[options.name].classes)
        sys.stdout.write(f"{split}: {len(members)} images of {len({row['subject'] for row in members})}: {told}\n")
    sys.stdout.write(f"Wrote {out}: give it as --datalist {out} --dataset_dir {options.folder}\n")


if __name__ == "__main__":
    main()
