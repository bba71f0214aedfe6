# SPDX-License-Identifier: Apache-2.0
"""Only one writer per folder at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

__all__ = ["lock_folder"]


def lock_folder(folder: Path) -> IO[str] | None:
    """Lock a folder until the returned file is closed or the process ends, for whatever reason.

    Returns:
        The open lock file; None on Windows, where nothing is locked.

    Raises:
        OSError: if the folder cannot be written to, or the lock's path is a symbolic link.
        RuntimeError: if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    # do not empty it or follow a link: a file of that name may belong to someone else
    lock = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RuntimeError(
            f"Another process is writing to {folder}; wait for it or choose another --output_dir."
        ) from None
    return lock
