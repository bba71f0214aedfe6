# SPDX-License-Identifier: Apache-2.0
"""Find a bundle's folder, from wherever its config was started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import medcf
from medcf.bundle.command_line import config_files

__all__ = ["find_bundle_root"]


def find_bundle_root(name: str) -> str:
    """Find the folder of the bundle ``name``.

    A config has no variable for its own place, and MONAI resolves ``.`` against the working directory; this function
    lets the same config run from the project's root, from inside the bundle, from anywhere by its absolute path, and
    from an installed wheel. Looked at, in this order: the bundle of the config named on the command line,
    ``$MEDCF_BUNDLE_ROOT`` and the bundle inside it, the working directory and its parent (inside ``configs/``),
    ``bundles/<name>`` below the working directory, and the bundles that came with the installed package.

    Args:
        name: folder name of the bundle, for example ``"diffice"``.

    Returns:
        Absolute path of the folder that holds ``configs/metadata.json`` of that bundle.

    Raises:
        FileNotFoundError: no such bundle; the message lists the places that were tried.
    """
    tried = []
    for candidate in _candidates(name):
        if _is_bundle(candidate, name):
            return str(candidate.resolve())
        tried.append(str(candidate))
    places = "\n  ".join(dict.fromkeys(tried))
    raise FileNotFoundError(
        f"The bundle {name!r} was found in none of these places:\n  {places}\n"
        "Set MEDCF_BUNDLE_ROOT to the folder that holds it, or pass --bundle_root."
    )


def _candidates(name: str) -> Iterator[Path]:
    for config in config_files():
        yield Path(config).resolve().parent.parent
    if root := os.environ.get("MEDCF_BUNDLE_ROOT"):
        yield Path(root) / name
        yield Path(root)
    cwd = Path.cwd()
    yield cwd
    yield cwd.parent
    yield cwd / "bundles" / name
    package = Path(medcf.__file__).resolve().parent
    yield package / "_bundles" / name
    yield package.parent / "bundles" / name


def _is_bundle(path: Path, name: str) -> bool:
    """Tell whether ``path`` is the bundle ``name``: by its metadata, since a user may rename the folder."""
    try:
        metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("bundle") == name
