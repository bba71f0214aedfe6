# SPDX-License-Identifier: Apache-2.0
"""One writer to a folder at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

__all__ = ["lock_folder"]


def lock_folder(folder: Path) -> IO[str] | None:
    """Lock a folder until the returned file is closed, or the process dies, however it dies.

    Returns:
        The open lock file; None on Windows, where nothing is locked.

    Raises:
        OSError: the folder cannot be written to, or a symbolic link is in the lock's place.
        RuntimeError: another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        return None
    # neither emptied nor reached through a link: a file of that name may be somebody else's
    lock = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RuntimeError(
            f"Another process is writing to {folder}; wait for it or choose another --output_dir."
        ) from None
    return lock
