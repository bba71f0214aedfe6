# SPDX-License-Identifier: Apache-2.0
"""medcf: how would this study look if it were another class?

Diffusion counterfactuals for medical images, as a plugin ecosystem on MONAI. ``medcf.load`` turns a bundle into an
explainer, ``medcf.read`` reads an image of any format. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcf.bundle.load import load
    from medcf.data import Case, Grid, GridRecord, find_cases
    from medcf.data.read import read
    from medcf.inference import CaseResult, Explainer
    from medcf.runtime.errors import Failure, UnreadableImage

__all__ = [
    "Case",
    "CaseResult",
    "Explainer",
    "Failure",
    "Grid",
    "GridRecord",
    "UnreadableImage",
    "__version__",
    "find_cases",
    "load",
    "read",
]
__version__ = "0.1.0"

_HOMES = {
    "medcf.bundle.load": ("load",),
    "medcf.data": ("Case", "Grid", "GridRecord", "find_cases", "read"),
    "medcf.inference": ("CaseResult", "Explainer"),
    "medcf.runtime.errors": ("Failure", "UnreadableImage"),
}


def __getattr__(name: str) -> Any:
    """Import attributes on first access only."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'medcf' has no attribute {name!r}")
    return getattr(import_module(home), name)
