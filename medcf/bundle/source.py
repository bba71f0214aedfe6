# SPDX-License-Identifier: Apache-2.0
"""Where a bundle is: a folder, one in a hub's cache, a zip archive, or the name of one shipped with medcf."""

from __future__ import annotations

import tempfile
import zipfile
from os import PathLike
from pathlib import Path

from medcf.bundle.root import bundle_folder

__all__ = ["CONFIG", "find_bundle"]

CONFIG = "inference.json"


def find_bundle(source: str | PathLike[str]) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Find a bundle's folder; unpack an archive.

    Args:
        source: a bundle's folder; a folder ``models--org--name`` of ``huggingface_hub``'s cache, or a snapshot in it;
            a zip archive; or the name of a bundle shipped with medcf.

    Returns:
        The folder, and the temporary one to keep while it is used, if it was unpacked.

    Raises:
        FileNotFoundError: if the bundle does not exist.
        ValueError: if the archive or the cache does not hold a bundle.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / "snapshots").is_dir():
        return _snapshot(path), None
    if path.is_dir() and (path / "configs").is_dir():
        return path, None
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a zip archive: give a bundle's folder, its zip archive, or its name.")
        unpacked = tempfile.TemporaryDirectory(prefix="medcf-")  # its own folder, which nobody else can have filled
        with zipfile.ZipFile(path) as stored:
            stored.extractall(unpacked.name)  # zipfile keeps members from leaving the folder
        found = sorted(Path(unpacked.name).rglob(f"configs/{CONFIG}"))
        if not found:
            raise ValueError(f"{path} does not hold a bundle: it has no configs/{CONFIG}.")
        return found[0].parents[1], unpacked
    if len(path.parts) != 1:
        raise FileNotFoundError(f"{path} does not exist: give a bundle's folder, its zip archive, or its name.")
    return bundle_folder(str(source)), None


def _snapshot(cache: Path) -> Path:
    """Return the snapshot of a hub's cache that ``refs/main`` names, or the only one.

    Its files are links into ``blobs``; the folder itself is none, so everything beside a config is found by its name.
    """
    snapshots = sorted(path for path in (cache / "snapshots").iterdir() if (path / "configs" / CONFIG).is_file())
    main = cache / "refs" / "main"
    wanted = main.read_text(encoding="utf-8").strip() if main.is_file() else None
    for path in snapshots:
        if path.name == wanted or (wanted is None and len(snapshots) == 1):
            return path
    if not snapshots:
        raise ValueError(f"{cache} does not hold a bundle: no snapshot has configs/{CONFIG}.")
    known = ", ".join(path.name for path in snapshots)
    raise ValueError(f"{cache} holds no bundle under refs/main: give one of its folders snapshots/HASH ({known}).")
