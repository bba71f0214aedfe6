# SPDX-License-Identifier: Apache-2.0
"""Bundles as MONAI Deploy applications: operators, an application, and the folder that becomes a container image.

The operators need the extra ``deploy``; importing this package and packaging do not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcf.deploy.application import CounterfactualApplication
    from medcf.deploy.operators import CaseLoaderOperator, CounterfactualOperator, DicomWriterOperator
    from medcf.deploy.package import write_package
    from medcf.deploy.settings import open_explainer

__all__ = [
    "CaseLoaderOperator",
    "CounterfactualApplication",
    "CounterfactualOperator",
    "DicomWriterOperator",
    "open_explainer",
    "write_package",
]

_HOMES = {
    "medcf.deploy.application": ("CounterfactualApplication",),
    "medcf.deploy.operators": ("CaseLoaderOperator", "CounterfactualOperator", "DicomWriterOperator"),
    "medcf.deploy.package": ("write_package",),
    "medcf.deploy.settings": ("open_explainer",),
}


def __getattr__(name: str) -> Any:
    """Import attributes on first access only: the SDK takes seconds."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'medcf.deploy' has no attribute {name!r}")
    return getattr(import_module(home), name)
