# SPDX-License-Identifier: Apache-2.0
"""Atomic file writes: a file is either the old or the complete new one, even after ``kill -9`` or a power cut."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["replace_file", "write_csv", "write_json"]


def replace_file(path: str | Path, write: Callable[[Any], Any], *, binary: bool = False) -> Path:
    """Write a file next to its final location and move it into place in one step.

    Args:
        path: file to write; its folder is created if missing.
        write: called with the open file.
        binary: open it for bytes instead of UTF-8 text; line endings are written unchanged in both modes.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # left by a killed process
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and not _is_alive(int(owner)):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with (
            temporary.open("wb")
            if binary
            else temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file
        ):
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either the old or the complete new one, even after a power cut."""
    text = json.dumps(content, indent=2, allow_nan=False, default=str) + "\n"
    replace_file(path, lambda file: file.write(text))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV, whatever their keys; by default the columns are all keys in order of appearance.

    Text that a spreadsheet would run as a formula gets a leading apostrophe.
    """
    names = list(columns or dict.fromkeys(key for row in rows for key in row))

    def write(file: IO[str]) -> None:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)

    replace_file(path, write)


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # signal 0 would not be a mere query there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # alive, but owned by another user
        return True
    return True
