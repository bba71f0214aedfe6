# SPDX-License-Identifier: Apache-2.0
"""MONAI Generative, the package from which MONAI took its diffusion networks, beside a MONAI that outgrew it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import monai.config
import monai.utils

__all__ = ["load_generative"]


def load_generative() -> ModuleType:
    """Import MONAI Generative 0.2.3 with its networks, schedulers and inferers.

    Its schedulers import ``IgniteInfo`` from where MONAI 1.4 and later no longer have it; the name is there while they
    are imported. Afterward ``import generative.networks.schedulers`` works everywhere in the process.

    Returns:
        The package ``generative``.

    Raises:
        ImportError: if it is not installed.
    """
    config: Any = monai.config
    absent = not hasattr(config, "IgniteInfo")
    if absent:
        config.IgniteInfo = monai.utils.IgniteInfo
    try:
        for part in ("networks.nets", "networks.schedulers", "inferers"):
            import_module(f"generative.{part}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "MONAI Generative is not installed. Run: python -m pip install --no-deps monai-generative==0.2.3"
        ) from error
    finally:
        if absent:
            del config.IgniteInfo
    return import_module("generative")
