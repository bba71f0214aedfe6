# SPDX-License-Identifier: Apache-2.0
"""Folders in which medcf replaces and removes only the files that its own record lists by name.

Each folder that medcf fills has a record, ``.medcf.json``, written before the files. A file that the record does not
list belongs to someone else, whatever its name: it is never overwritten or removed, and neither is anything behind a
symbolic link.
"""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from medcf.runtime.atomic import replace_file

__all__ = [
    "DEMO_FOLDER",
    "DEMO_TRUTH",
    "NOTICE",
    "RECORD",
    "check_output_dir",
    "fill_folder",
    "is_ours",
    "lock_folder",
    "may_fill",
    "remove_files",
    "run_of",
    "written_files",
]

RECORD = ".medcf.json"
DEMO_FOLDER = "demo_inputs"
#: The true images of those phantoms.
DEMO_TRUTH = "demo_truth"
NOTICE = "SYNTHETIC counterfactual images made by medcf. Not for diagnosis."


def check_output_dir(output_dir: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output folder in which a run could touch its input files.

    Args:
        output_dir: output folder of the run; need not exist.
        inputs: files to read and folders to search.

    Raises:
        ValueError: if the folder is or contains an input, or is inside a searched folder and holds files that no medcf
            run wrote; the message gives a remedy. Files that a run wrote itself (its demo) may be in its own folder.
    """
    folder = Path(output_dir).resolve()
    remedy = "Choose another folder with --output_dir."
    for place in map(Path, inputs):
        found = place.resolve()
        if found == folder or (found.is_relative_to(folder) and not _wrote(folder, place)):
            what = "is" if found == folder else "contains"
            raise ValueError(f"--output_dir {output_dir} {what} the input {place.name!r}, which must stay. {remedy}")
        searched = found.is_dir() and folder.is_relative_to(found)
        if searched and folder.is_dir() and any(folder.iterdir()) and not is_ours(folder / "manifest.json"):
            raise ValueError(
                f"--output_dir {output_dir} is inside the searched folder {place.name!r} and holds files that are not "
                f"medcf's. {remedy}"
            )


def is_ours(manifest: Path) -> bool:
    """Recognize the manifest of a run by its first lines."""
    try:
        if not manifest.is_file():  # a pipe would wait forever
            return False
        with manifest.open("rb") as stream:
            return b'"notice": "SYNTHETIC counterfactual' in stream.read(200)
    except OSError:
        return False


def fill_folder(folder: Path, write: Callable[[Path], object], *, more: Iterable[str] = (), run: str = "") -> list[str]:
    """Let a function write files, then move them into a folder, replacing only what its record lists.

    Args:
        folder: destination, created if missing.
        write: called with an empty staging folder next to it.
        more: other names that the caller will write into ``folder`` itself.
        run: run that the result belongs to, for the record.

    Returns:
        The file names, relative to the folder. Files of an earlier call that this one did not write are removed.

    Raises:
        FileExistsError: if someone else's file or folder is in the way; names it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):  # left by a killed process
        if (leftover / RECORD).is_file():
            _empty(leftover)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _record(staging, [], run)
        write(staging)
        (staging / RECORD).unlink()
        made = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        before = set(written_files(folder))
        for name in [*made, *more]:
            target = folder / name
            if folder.is_symlink() or _behind_link(folder, name) or (os.path.lexists(target) and name not in before):
                raise FileExistsError(
                    f"{target} is in the way and was not made by medcf: move it, or use another folder."
                )
        folder.mkdir(exist_ok=True)
        _record(folder, sorted(before.union(made, more)), run)
        for name in made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, folder / name)
        for name in before.difference(made, more):  # from an earlier result, which must not mix with this one
            _remove(folder, name)
        _record(folder, sorted({*made, *more}), run)
    finally:
        _empty(staging)
    return made


def lock_folder(folder: Path, name: str = ".lock") -> IO[str] | None:
    """Lock a folder until the returned file is closed or the process ends, for whatever reason.

    Args:
        folder: the folder.
        name: of the lock's file; processes that share a folder by agreement have one each.

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
    lock = os.fdopen(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RuntimeError(
            f"Another process is writing to {folder}; wait for it or choose another --output_dir."
        ) from None
    return lock


def run_of(folder: Path) -> str | None:
    """Return the run that a folder's record names; None without a record."""
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def may_fill(folder: Path) -> bool:
    """Tell whether a folder is free: missing, empty, or with a record."""
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    begun = f".{RECORD}."  # unfinished record of a killed process
    return (folder / RECORD).is_file() or all(path.name.startswith(begun) for path in folder.iterdir())


def written_files(folder: Path) -> list[str]:
    """List the files in a folder's record; empty without a record. Names that lead outside the folder are skipped."""
    try:
        names = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    listed = names if isinstance(names, list) else []
    return [name for name in listed if isinstance(name, str) and _stays_inside(name)]


def remove_files(folder: Path) -> None:
    """Remove the files that a folder's record lists, then the record, then folders that are empty."""
    if folder.is_symlink() or not folder.is_dir():
        return
    names = written_files(folder)
    for name in names:
        _remove(folder, name)
    if (folder / RECORD).is_file():
        (folder / RECORD).unlink()
    parents = {parent for name in names for parent in PurePosixPath(name).parents if parent.name}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        _rmdir(folder / parent)
    _rmdir(folder)


def _wrote(folder: Path, place: Path) -> bool:
    """Tell whether ``place`` is the demo written by a run with this output folder, or a file in it."""
    where = Path(os.path.abspath(place))
    home = where if where.is_dir() else where.parent
    if home.is_symlink() or home.name != DEMO_FOLDER or home.resolve().parent != folder:
        return False
    names = written_files(home)
    return bool(names) and (where == home or where.name in names)


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _behind_link(folder: Path, name: str) -> bool:
    """Tell whether any folder between ``folder`` and the file is a symbolic link."""
    return any((folder / parent).is_symlink() for parent in PurePosixPath(name).parents if parent.name)


def _remove(folder: Path, name: str) -> None:
    path = folder / name
    if not _behind_link(folder, name) and not path.is_symlink() and path.is_file():
        path.unlink()


def _record(folder: Path, names: list[str], run: str) -> None:
    text = json.dumps({"notice": NOTICE, "run": run, "files": names}, indent=1) + "\n"
    replace_file(folder / RECORD, lambda file: file.write(text))


def _empty(staging: Path) -> None:
    """Remove a staging folder, which only medcf writes to, file by file and without following links."""
    if not staging.is_dir() or staging.is_symlink():
        return
    for root, folders, files in os.walk(staging, topdown=False):
        for name in files:
            Path(root, name).unlink()
        for path in (Path(root, name) for name in folders):
            path.unlink() if path.is_symlink() else path.rmdir()
    staging.rmdir()


def _rmdir(folder: Path) -> None:
    with suppress(OSError):  # not empty: the remaining files are not medcf's
        folder.rmdir()
