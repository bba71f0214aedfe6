# SPDX-License-Identifier: Apache-2.0
"""Tables and records that are either the old one or the whole new one, see `medcf.data.atomic`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from medcf.data.atomic import replace_file

__all__ = ["write_csv", "write_json"]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either the old one or the whole new one, also after a power cut."""
    text = json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    replace_file(path, lambda file: file.write(text))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV; columns are those of all rows, in order of appearance, unless given."""
    names = list(columns or dict.fromkeys(key for row in rows for key in row))

    def write(file: IO[str]) -> None:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)

    replace_file(path, write)
