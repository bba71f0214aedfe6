# SPDX-License-Identifier: Apache-2.0
"""``labels.csv`` of a folder of real images."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

__all__ = ["read_labels"]


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
