# SPDX-License-Identifier: Apache-2.0
"""Folders in which medcf replaces and removes nothing but the files that its own record lists, each by name.

The record ``.medcf.json`` stands in each folder that medcf fills and is written before the files are. A file that it
does not list belongs to somebody else, whatever its name is: it is never overwritten and never removed, and neither is
anything behind a symbolic link.
"""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from medcf.runtime.atomic import replace_file

__all__ = [
    "DEMO_FOLDER",
    "NOTICE",
    "RECORD",
    "check_output_dir",
    "fill_folder",
    "is_ours",
    "may_fill",
    "remove_files",
    "run_of",
    "written_files",
]

RECORD = ".medcf.json"
DEMO_FOLDER = "demo_inputs"
NOTICE = "SYNTHETIC counterfactual images made by medcf. Not for diagnosis."


def check_output_dir(output_dir: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output folder in which a run could meet the files it reads.

    Args:
        output_dir: folder of the run; need not exist.
        inputs: files that are read, and folders that are searched.

    Raises:
        ValueError: the folder is or contains one of them, or lies in a searched folder and holds files that no run of
            medcf wrote; says what to do. What a run wrote itself (its demo) may lie in its own folder.
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
                f"--output_dir {output_dir} lies in the searched folder {place.name!r} and holds files that are not "
                f"medcf's. {remedy}"
            )


def is_ours(manifest: Path) -> bool:
    """Tell the manifest of a run by its first lines."""
    try:
        with manifest.open("rb") as stream:
            return b'"notice": "SYNTHETIC counterfactual' in stream.read(200)
    except OSError:
        return False


def fill_folder(folder: Path, write: Callable[[Path], object], *, more: Iterable[str] = (), run: str = "") -> list[str]:
    """Let a function write files, and move them into a folder where they replace only what the record lists.

    Args:
        folder: made where it is missing.
        write: called with an empty folder beside it.
        more: further names that the caller is going to write into ``folder`` itself.
        run: whose result it is, for the record.

    Returns:
        The names of the files, relative to the folder. What an earlier call wrote and this one did not is removed.

    Raises:
        FileExistsError: a file or folder of somebody else is in the way; names it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):  # of a process that was killed
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
                raise FileExistsError(f"{target} is in the way and not medcf's: move it, or choose another folder.")
        folder.mkdir(exist_ok=True)
        _record(folder, sorted(before.union(made, more)), run)
        for name in made:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, folder / name)
        for name in before.difference(made, more):  # of an earlier result, which must not stand beside this one
            _remove(folder, name)
        _record(folder, sorted({*made, *more}), run)
    finally:
        _empty(staging)
    return made


def run_of(folder: Path) -> str | None:
    """Return whose result a folder holds by its record; None without a record."""
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def may_fill(folder: Path) -> bool:
    """Tell whether a folder is free: it is missing, empty, or has a record."""
    if not os.path.lexists(folder):
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    begun = f".{RECORD}."  # what a process that was killed leaves of a record
    return (folder / RECORD).is_file() or all(path.name.startswith(begun) for path in folder.iterdir())


def written_files(folder: Path) -> list[str]:
    """List what the record of a folder names; empty without a record, and nothing that leads out of the folder."""
    try:
        names = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    listed = names if isinstance(names, list) else []
    return [name for name in listed if isinstance(name, str) and _stays_inside(name)]


def remove_files(folder: Path) -> None:
    """Remove the files that the record of a folder lists, then the record and folders that are empty by then."""
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
    """Tell whether ``place`` is the demo that a run with this output folder wrote, or a file of it."""
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
    """Tell whether a folder on the way from ``folder`` to the file is a symbolic link."""
    return any((folder / parent).is_symlink() for parent in PurePosixPath(name).parents if parent.name)


def _remove(folder: Path, name: str) -> None:
    path = folder / name
    if not _behind_link(folder, name) and not path.is_symlink() and path.is_file():
        path.unlink()


def _record(folder: Path, names: list[str], run: str) -> None:
    text = json.dumps({"notice": NOTICE, "run": run, "files": names}, indent=1) + "\n"
    replace_file(folder / RECORD, lambda file: file.write(text))


def _empty(staging: Path) -> None:
    """Remove a staging folder, which nobody but medcf writes to, file by file and without following links."""
    if not staging.is_dir() or staging.is_symlink():
        return
    for root, folders, files in os.walk(staging, topdown=False):
        for name in files:
            Path(root, name).unlink()
        for path in (Path(root, name) for name in folders):
            path.unlink() if path.is_symlink() else path.rmdir()
    staging.rmdir()


def _rmdir(folder: Path) -> None:
    with suppress(OSError):  # not empty: what is left is not medcf's
        folder.rmdir()
