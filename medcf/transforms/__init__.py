# SPDX-License-Identifier: Apache-2.0
"""Transforms in MONAI's style: reading cases, removing overlays, to the network's grid and back."""

from __future__ import annotations

from medcf.transforms.difference import NativeCounterfactual, NativeCounterfactuald
from medcf.transforms.difference_map import (
    DifferenceMap,
    DifferenceMapD,
    DifferenceMapd,
    DifferenceMapDict,
)
from medcf.transforms.grid import ToGrid, ToGridD, ToGridd, ToGridDict
from medcf.transforms.load_case import LoadCased
from medcf.transforms.overlays import RemoveOverlays, RemoveOverlaysD, RemoveOverlaysd, RemoveOverlaysDict

__all__ = [
    "DifferenceMap",
    "DifferenceMapD",
    "DifferenceMapDict",
    "DifferenceMapd",
    "LoadCased",
    "NativeCounterfactual",
    "NativeCounterfactuald",
    "RemoveOverlays",
    "RemoveOverlaysD",
    "RemoveOverlaysDict",
    "RemoveOverlaysd",
    "ToGrid",
    "ToGridD",
    "ToGridDict",
    "ToGridd",
]
