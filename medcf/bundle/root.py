# SPDX-License-Identifier: Apache-2.0
"""Finds a bundle's location: the folder of the config being read, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from monai.bundle import ConfigWorkflow

from medcf.runtime.fingerprint import find_caller

__all__ = ["bundle_folder", "expect_own_models", "find_bundle_root"]


def find_bundle_root(name: str) -> str:
    """Find the folder of the bundle whose config is being evaluated.

    A config has no variable for its own location, and MONAI resolves ``.`` against the working directory. Call this
    from a config expression (``"bundle_root": "$find_bundle_root('diffice')"``). The folder is that of the config files
    of the workflow being evaluated, whoever named them (the command line, ``--args_file``, Python), or the ``sys.path``
    entry that MONAI Deploy and MONAI Label create for a bundle. Another bundle with the same name is never used,
    because its weights would differ.

    Args:
        name: name of the bundle in its metadata, such as ``"diffice"``.

    Returns:
        Absolute path of the folder with ``configs/metadata.json`` of that bundle.

    Raises:
        FileNotFoundError: if it cannot be determined; the message says how to specify it.
    """
    workflow = find_caller(ConfigWorkflow)
    own = [] if workflow is None else [Path(workflow.config_root_path).resolve().parent]
    for candidate in [*own, *(Path(entry) for entry in sys.path if entry)]:
        if _is_bundle(candidate, name):
            return str(candidate.resolve())
    raise FileNotFoundError(
        f"The location of the bundle {name!r} is unknown: give its folder as bundle_root (--bundle_root FOLDER, or "
        "bundle_root=... in Python)."
    )


def expect_own_models(
    path: str | Path, bundle_root: str | Path, dataset_dir: str | Path | None, datalist: str | Path | None
) -> None:
    """Refuse to replace a bundle's weights by those trained on the user's own images.

    Args:
        path: destination of the weights.
        bundle_root: folder of the bundle.
        dataset_dir: folder of the user's images, or None.
        datalist: table of the user's images, or None; if neither is given, training uses phantoms.

    Raises:
        ValueError: if the destination is the bundle's ``models``.
    """
    demo = Path(bundle_root).resolve() / "models"
    if (dataset_dir is not None or datalist is not None) and Path(path).parent.resolve() == demo:
        raise ValueError(
            f"Weights from your own images would replace the bundle's in {demo}: name a folder for them with "
            "--models_dir DIR, the same one for all trainings and for inference."
        )


def bundle_folder(name: str) -> Path:
    """Return the folder of a bundle shipped with medcf.

    Raises:
        FileNotFoundError: if it does not exist; the message lists those that do.
    """
    package = Path(__file__).resolve().parents[1]
    homes = [home for home in (package / "_bundles", package.parent / "bundles") if home.is_dir()]
    for home in homes:
        if _is_bundle(home / name, name):
            return home / name
    known = sorted({path.parents[1].name for home in homes for path in home.glob("*/configs/metadata.json")})
    raise FileNotFoundError(
        f"{name!r} is not a bundle's folder or archive, and not one shipped with medcf: {', '.join(known)}."
    )


def _is_bundle(path: Path, name: str) -> bool:
    """Tell whether ``path`` is the bundle ``name``, by its metadata, because a user may rename the folder."""
    try:
        metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("bundle") == name
