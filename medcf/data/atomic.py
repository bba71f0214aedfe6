# SPDX-License-Identifier: Apache-2.0
"""Files that are either the old one or the whole new one, also after ``kill -9`` or a power cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["remove_leftovers", "replace_file"]


def replace_file(path: str | Path, write: Callable[[Any], Any], *, binary: bool = False) -> Path:
    """Write a file beside its final place and move it there in one step.

    Args:
        path: file to write; its folder is made where it is missing.
        write: called with the open file.
        binary: open it for bytes instead of UTF-8 text; line ends are written as they are in both.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") if binary else temporary.open("w", encoding="utf-8", newline="") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def remove_leftovers(folder: str | Path) -> None:
    """Remove what processes that were killed had begun to write into a folder, where no process writes now."""
    for leftover in Path(folder).glob(".*.tmp"):
        if leftover.name.split(".")[-2].isdigit():
            leftover.unlink(missing_ok=True)
