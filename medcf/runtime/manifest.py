# SPDX-License-Identifier: Apache-2.0
"""The manifest of a run: what its results depend on, and which sessions produced them."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from medcf import __version__
from medcf.runtime.fingerprint import config_fingerprint, describe_changes, sha256
from medcf.runtime.owned import NOTICE, is_ours
from medcf.runtime.ranks import world_size

__all__ = ["MANIFEST", "continue_manifest", "describe_session", "new_manifest", "now", "read_manifest"]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

_PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite", "nibabel", "pydicom", "scikit-image", "scipy")


def now() -> str:
    """Return the local time with its UTC offset, in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe_session() -> dict[str, Any]:
    """Describe this process as JSON values: command, versions, machine, number of processes."""
    versions = {"python": platform.python_version(), "medcf": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "started": now(),
        "command": [Path(sys.executable).name, *sys.argv],
        "versions": versions,
        "platform": platform.platform(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def new_manifest(
    config: Mapping[str, Any],
    weights: Mapping[str, Path],
    seed: int,
    inputs: Mapping[str, str],
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    """Describe a run that begins.

    Args:
        config: raw config of the run.
        weights: name to path of every weights file that affects the results.
        seed: seed of the run.
        inputs: case id to path.
        hashes: case id to SHA-256, see `medcf.runtime.fingerprint.hash_inputs`.

    Returns:
        JSON values.
    """
    files = {name: {"path": str(path), "sha256": sha256(path)} for name, path in weights.items()}
    return {
        "notice": NOTICE,
        "created": now(),
        "seed": seed,
        "config": dict(config),
        "weights": files,
        "inputs": {case: {"path": path, "sha256": hashes[case]} for case, path in inputs.items()},
        "fingerprint": {
            "config": config_fingerprint(config) | {"medcf version": __version__},
            "weights": {f"{name} ({path.name})": files[name]["sha256"] for name, path in weights.items()},
            "inputs": dict(hashes),
        },
        "run": uuid.uuid4().hex,
        "tables": [],
        "sessions": [],
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of an earlier run; None if there is none.

    Raises:
        ValueError: if it is damaged.
    """
    path = folder / MANIFEST
    if not is_ours(path):
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"run", "tables", "inputs", "fingerprint", "sessions"}.difference(manifest):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --output_dir.") from error
    return manifest


def continue_manifest(
    folder: Path, previous: dict[str, Any], new: Mapping[str, Any], finished: Collection[str]
) -> None:
    """Resume an earlier run: images may be added or gone, but nothing else that affects results may differ.

    Args:
        folder: of the run, for messages.
        previous: manifest of the earlier sessions; images that are new, or failed and are not finished, are updated.
        new: manifest of this session.
        finished: cases that the earlier sessions finished.

    Raises:
        ValueError: names the changes. A file that failed may have changed, because no result depends on it.
    """
    failed, known = set(previous.get("failed", ())), previous["fingerprint"]["inputs"]
    for case, entry in new["inputs"].items():
        if case not in known or (entry["path"] in failed and case not in finished):
            known[case] = entry["sha256"]
            previous["inputs"][case] = entry
    gone = [case for case in known if case not in new["inputs"]]
    if gone:
        logger.warning("%d images of this run no longer exist, %s first; their results are kept.", len(gone), gone[0])
    current = {**new["fingerprint"], "inputs": {**known, **new["fingerprint"]["inputs"]}}
    if changes := describe_changes(previous["fingerprint"], current):
        raise ValueError(
            f"{folder} holds the results of another run. Since then:\n  "
            + "\n  ".join(changes)
            + "\nChoose another folder with --output_dir, or replace those results with --overwrite true."
        )
