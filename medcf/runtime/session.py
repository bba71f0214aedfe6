# SPDX-License-Identifier: Apache-2.0
"""What a manifest records about the process that wrote it."""

from __future__ import annotations

import platform
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from medcf import __version__
from medcf.runtime.ranks import world_size

__all__ = ["describe_session", "now"]

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
