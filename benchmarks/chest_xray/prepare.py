# SPDX-License-Identifier: Apache-2.0
"""Tables for the bundle's training configs, from a folder of chest radiographs with a ``labels.csv``.

Normal is label 0, pneumonia label 1. No subject occurs in two splits.
"""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.labels import read_labels
from medcf.data.prepare import deal_folds

__all__ = ["COLUMNS", "SPLITS", "prepare"]

COLUMNS = ("file", "case", "label", "subject", "split")
FOLDS = 5
#: By table, the split of each fold, "train" where none is named. ``planes`` is for the explained classifier, ``judge``
#: for the independent one, ``model`` for the diffusion model. Fold 0 is trained on by nothing.
SPLITS = {"planes": {0: "val", 4: "test"}, "judge": {0: "val", 1: "test"}, "model": {0: "val"}}


def prepare(data: str | Path, out: str | Path, seed: int = 0) -> dict[str, int]:
    """Write ``planes.csv``, ``judge.csv`` and ``model.csv``.

    Args:
        data: folder with ``images`` and ``labels.csv`` (``file``, ``subject``, ``label_pneumonia``).
        out: folder for the tables.
        seed: seed of the split, which is stratified by label and by subject.

    Returns:
        Number of rows by table and split.

    Raises:
        FileNotFoundError: there is no ``labels.csv``.
        ValueError: the table lacks a column that is needed.
    """
    data, out = Path(data).resolve(), Path(out)
    rows = read_labels(data, ("file", "subject", "label_pneumonia"))
    labels = [int(row["label_pneumonia"]) for row in rows]
    folds = deal_folds(labels, [row["subject"] for row in rows], FOLDS, seed)
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for name, splits in SPLITS.items():
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            for row, label, fold in zip(rows, labels, folds, strict=True):
                split = splits.get(fold, "train")
                file = data / row["file"]
                writer.writerow([file, file.stem, label, row["subject"], split])
                counts[f"{name} {split}"] = counts.get(f"{name} {split}", 0) + 1
    return counts
