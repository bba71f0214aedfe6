# SPDX-License-Identifier: Apache-2.0
"""Where a bundle lies: the folder of the config that is being read, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from monai.bundle import ConfigWorkflow

from medcf.runtime.fingerprint import find_caller

__all__ = ["bundle_folder", "expect_own_models", "find_bundle_root"]


def find_bundle_root(name: str) -> str:
    """Find the folder of the bundle whose config is being evaluated.

    A config has no variable for its own place, and MONAI resolves ``.`` against the working directory. To be called
    from an expression of a config (``"bundle_root": "$find_bundle_root('diffice')"``): the folder is that of the config
    files of the workflow that evaluates it, whoever named them (the command line, ``--args_file``, Python), or the
    entry of ``sys.path`` that MONAI Deploy and MONAI Label make of a bundle. No other bundle of the same name is ever
    taken: its weights would be others.

    Args:
        name: name of the bundle in its metadata, for example ``"diffice"``.

    Returns:
        Absolute path of the folder that holds ``configs/metadata.json`` of that bundle.

    Raises:
        FileNotFoundError: nothing tells it; the message says how to give it.
    """
    workflow = find_caller(ConfigWorkflow)
    own = [] if workflow is None else [Path(workflow.config_root_path).resolve().parent]
    for candidate in [*own, *(Path(entry) for entry in sys.path if entry)]:
        if _is_bundle(candidate, name):
            return str(candidate.resolve())
    raise FileNotFoundError(
        f"Nothing tells where the bundle {name!r} lies: give its folder as bundle_root (--bundle_root FOLDER, or "
        "bundle_root=... in Python)."
    )


def expect_own_models(
    path: str | Path, bundle_root: str | Path, dataset_dir: str | Path | None, datalist: str | Path | None
) -> None:
    """Refuse to replace a bundle's weights by those of a training on the user's own images.

    Args:
        path: where the weights will go.
        bundle_root: folder of the bundle.
        dataset_dir: folder of the user's images, or None.
        datalist: table of the user's images, or None; phantoms are trained on where neither is given.

    Raises:
        ValueError: they would go into the bundle's ``models``.
    """
    demo = Path(bundle_root).resolve() / "models"
    if (dataset_dir is not None or datalist is not None) and Path(path).resolve().parent == demo:
        raise ValueError(
            f"Weights of your own images would replace the bundle's in {demo}: name a folder for them by "
            "--models_dir DIR, the same one for every training and for inference."
        )


def bundle_folder(name: str) -> Path:
    """Return the folder of a bundle that came with medcf.

    Raises:
        FileNotFoundError: there is none; the message lists those that exist.
    """
    package = Path(__file__).resolve().parents[1]
    homes = [home for home in (package / "_bundles", package.parent / "bundles") if home.is_dir()]
    for home in homes:
        if _is_bundle(home / name, name):
            return home / name
    known = sorted({path.parents[1].name for home in homes for path in home.glob("*/configs/metadata.json")})
    raise FileNotFoundError(
        f"{name!r} is neither a folder nor an archive of a bundle, nor one that came with medcf: {', '.join(known)}."
    )


def _is_bundle(path: Path, name: str) -> bool:
    """Tell whether ``path`` is the bundle ``name``: by its metadata, since a user may rename the folder."""
    try:
        metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("bundle") == name
