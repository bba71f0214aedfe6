# SPDX-License-Identifier: Apache-2.0
"""Imports the MONAI Deploy App SDK: with the CUDA runtime that it needs even on a CPU, and without its noise."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["load_sdk", "quiet_sdk"]

_RUNTIME = "nvidia/cu13/lib/libcudart.so.13"  # of the package nvidia-cuda-runtime
_NOISY = ("monai.deploy.operators.decoder_nvimgcodec",)  # an optional decoder, which our reader does not use
_STACK = 32 * 2**20  # bytes
_EXTRA = "MONAI Deploy is needed: python -m pip install 'medcf[deploy]'"


def load_sdk() -> Any:
    """Import ``monai.deploy.core``.

    Raises:
        ImportError: if it cannot be imported; names the extra that brings it.
    """
    quiet_sdk()
    try:
        return importlib.import_module("monai.deploy.core")
    except ImportError as error:
        if "libcudart" not in str(error):
            raise ImportError(f"{_EXTRA} ({error})") from error
    _preload_runtime()
    try:
        return importlib.import_module("monai.deploy.core")
    except ImportError as error:
        raise ImportError(f"{_EXTRA} ({error})") from error


def quiet_sdk() -> None:
    """Keep the SDK's noise from a log. MONAI imports it too, where it is installed, so a program calls this first."""
    # holoscan says once per run that there is no CUDA driver, at a level that it reads on import
    os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "ERROR")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _raise_stack_limit()


def _raise_stack_limit() -> None:
    """Give the process the stack that holoscan recommends, where it may have it; otherwise holoscan says so."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
        if soft != resource.RLIM_INFINITY and soft < _STACK:
            resource.setrlimit(resource.RLIMIT_STACK, (_STACK, hard))


def _preload_runtime() -> None:
    """Load the CUDA runtime of the package, which the loader does not find by itself, and forget the failed import."""
    for folder in map(Path, sys.path):
        if (folder / _RUNTIME).is_file():
            ctypes.CDLL(str(folder / _RUNTIME), ctypes.RTLD_GLOBAL)
            break
    for name in [name for name in sys.modules if name.split(".")[0] == "holoscan" or name.startswith("monai.deploy")]:
        del sys.modules[name]
