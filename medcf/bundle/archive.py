# SPDX-License-Identifier: Apache-2.0
"""A bundle as a zip archive: what ``monai.bundle download --url`` unpacks and `medcf.load` reads."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

from medcf.runtime.atomic import replace_file

__all__ = ["write_archive"]

_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: equal bundles make equal archives


def write_archive(folder: Path, path: Path, name: str) -> int:
    """Write all files of a bundle into a zip archive, under one folder, as the model zoo has them.

    Args:
        folder: folder of the bundle; links in it, as in a hub's cache, are stored as the files they lead to.
        path: archive to write; equal bundles make equal bytes.
        name: name of the folder in the archive, by which MONAI looks for it.

    Returns:
        The number of files. Hidden files and what Python compiled are left out.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.resolve() != path.resolve()]
    inner = {file: file.relative_to(folder) for file in files}
    kept = {file: part for file, part in inner.items() if not any(_left_out(each) for each in part.parts)}

    def write(stream: Any) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, part in kept.items():
                entry = zipfile.ZipInfo((Path(name) / part).as_posix(), _TIME)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with file.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)

    replace_file(path, write, binary=True)
    return len(kept)


def _left_out(part: str) -> bool:
    return part.startswith(".") or part == "__pycache__"
