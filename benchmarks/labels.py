# SPDX-License-Identifier: Apache-2.0
"""``labels.csv`` of a folder of real images, and its subjects assigned to folds."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

__all__ = ["deal_folds", "read_labels"]


def read_labels(data: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Read ``labels.csv`` of the data folder.

    Args:
        data: the folder.
        columns: columns that are needed; others are read, too.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it lacks a column that is needed.
    """
    table = data / "labels.csv"
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist: name the folder that holds labels.csv with --data.")
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if missing := set(columns) - set(rows[0] if rows else ()):
        raise ValueError(f"{table} lacks the columns {', '.join(sorted(missing))}.")
    return rows


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
