# SPDX-License-Identifier: Apache-2.0
"""Walks through a folder: which files could be images, which cannot be opened, and which are left out."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from medcf.data.nifti import header_of_pair
from medcf.runtime.errors import Failure
from medcf.runtime.owned import DEMO_FOLDER, DEMO_TRUTH, RECORD, is_ours

__all__ = ["walk_files"]

logger = logging.getLogger(__name__)

_SIDECARS = {
    *(".csv", ".tsv", ".json", ".txt", ".md", ".rst", ".yaml", ".yml", ".xml", ".html", ".log", ".pdf", ".py", ".bval"),
    *(".sha256", ".md5", ".pt", ".npz", ".npy", ".ini", ".cfg", ".conf", ".xlsx", ".docx"),
    ".tags",  # of the orchestrator mercure, beside each DICOM file
}
_SIDECAR_NAMES = {"dicomdir", "readme", "license", "licence", "thumbs.db", "desktop.ini"}
_LABEL_FOLDERS = ("derivatives", "segmentations", "segmentation", "labels", "labelstr", "labelsts", "masks", "mask")
_LABEL_ENDS = ("_seg", "_dseg", "_probseg", "_mask", "_label", "_labels", "_segmentation")


def walk_files(root: Path, exclude: Sequence[str | PathLike[str]] = ()) -> tuple[list[Path], list[Failure]]:
    """List the files below a folder that could be images, in a fixed order, and what cannot be searched or opened.

    Links are followed, each folder once. Hidden files, sidecar files, output folders of runs, and label maps next to
    images (recognized by file and folder names; the log reports their number) are left out.

    Args:
        root: folder to search.
        exclude: files and folders to leave out.

    Raises:
        ValueError: if the folder itself holds the results of a run.
    """
    demo = root.name in (DEMO_FOLDER, DEMO_TRUTH)
    if is_ours(root / "manifest.json") or ((root / RECORD).is_file() and not demo):
        raise ValueError(f"dataset_dir {str(root)!r} holds output of medcf: give the folder with the images instead")
    unwanted = {os.path.realpath(path) for path in exclude}
    failures: list[Failure] = []
    files: list[Path] = []
    seen = {_identity(root)}
    closed: list[OSError] = []
    for folder, names, here in os.walk(root, followlinks=True, onerror=closed.append):
        below = {name: Path(folder) / name for name in sorted(names) if not name.startswith(".")}
        names[:] = [n for n, path in below.items() if os.path.realpath(path) not in unwanted and _is_new(path, seen)]
        for path in (Path(folder) / name for name in sorted(here) if _could_be_image(Path(folder) / name)):
            if os.path.realpath(path) in unwanted:
                continue
            failure = _refusal(path)
            files += [] if failure else [path]
            failures += [failure] if failure else []
    return _without_label_maps(files, root), [*failures, *map(_closed, closed)]


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Tell whether to search a folder: not if it holds the results of a run, and not twice."""
    try:
        identity = _identity(folder)
        results = is_ours(folder / "manifest.json") or (folder / RECORD).is_file()
    except OSError:  # a loop, or locked: the walk names it
        return True
    if results:
        logger.warning("%s holds the results of a run and is left out", folder.name)  # not patient images
        return False
    if identity in seen:
        logger.warning("%s is a link to a folder that was already searched, and is left out", folder.name)
        return False
    seen.add(identity)
    return True


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _could_be_image(path: Path) -> bool:
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.startswith((".", "~$")) or suffix in _SIDECARS or name in _SIDECAR_NAMES:
        return False
    pixels = name.removesuffix(".gz").endswith((".raw", ".zraw"))
    if pixels and any(
        (path.parent / f"{path.name.split('.raw')[0].removesuffix('.zraw')}{header}").is_file()
        for header in (".mhd", ".nhdr")
    ):
        return False  # read with its header
    return not (suffix == ".img" and path.is_file() and header_of_pair(path))


def _refusal(path: Path) -> Failure | None:
    """Explain why a file must not be opened: pipes would block forever, devices never end."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        return Failure(str(path), "read", "is a link to a file that does not exist", "Repair the link.")
    except OSError as error:
        reason = f"cannot be opened ({type(error).__name__})"
        return Failure(str(path), "read", reason, "Check its permissions and its link target.")
    if not stat.S_ISREG(kind):
        return Failure(str(path), "read", "is a pipe, a socket or a device, not a file", "Leave it out.")
    return None


def _closed(error: OSError) -> Failure:
    reason = f"is a folder that cannot be searched ({type(error).__name__})"
    return Failure(str(error.filename), "read", reason, "Check its permissions.")


def _without_label_maps(files: list[Path], root: Path) -> list[Path]:
    """Leave out label maps next to images, unless there is nothing else."""
    maps = {path for path in files if _is_label_map(path.relative_to(root))}
    if not maps or len(maps) == len(files):
        return files
    logger.info(
        "%d files look like label maps and are left out (in folders named %s; names ending in %s): %s, ...",
        len(maps),
        ", ".join(_LABEL_FOLDERS),
        ", ".join(_LABEL_ENDS),
        min(maps).name,
    )
    return [path for path in files if path not in maps]


def _is_label_map(path: Path) -> bool:
    stem = path.name.lower().removesuffix(".gz").rsplit(".", 1)[0]
    return stem.endswith(_LABEL_ENDS) or any(part.lower() in _LABEL_FOLDERS for part in path.parts[:-1])
