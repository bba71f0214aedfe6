# SPDX-License-Identifier: Apache-2.0
"""Transforms in MONAI's style: overlay removal, to the network's grid and back, difference maps."""

from __future__ import annotations

from medcf.transforms.corrections import CorrectBias, CorrectBiasD, CorrectBiasd, CorrectBiasDict
from medcf.transforms.difference import AddDifference, AddDifferenceD, AddDifferenced, AddDifferenceDict
from medcf.transforms.difference_map import DifferenceMap, DifferenceMapD, DifferenceMapd, DifferenceMapDict
from medcf.transforms.grid import ToGrid, ToGridD, ToGridd, ToGridDict
from medcf.transforms.overlays import RemoveOverlays, RemoveOverlaysD, RemoveOverlaysd, RemoveOverlaysDict
from medcf.transforms.region_swap import RandRegionSwap, RandRegionSwapD, RandRegionSwapd, RandRegionSwapDict
from medcf.transforms.vignette import RandVignette, RandVignetteD, RandVignetted, RandVignetteDict

__all__ = [
    "AddDifference",
    "AddDifferenceD",
    "AddDifferenceDict",
    "AddDifferenced",
    "CorrectBias",
    "CorrectBiasD",
    "CorrectBiasDict",
    "CorrectBiasd",
    "DifferenceMap",
    "DifferenceMapD",
    "DifferenceMapDict",
    "DifferenceMapd",
    "RandRegionSwap",
    "RandRegionSwapD",
    "RandRegionSwapDict",
    "RandRegionSwapd",
    "RandVignette",
    "RandVignetteD",
    "RandVignetteDict",
    "RandVignetted",
    "RemoveOverlays",
    "RemoveOverlaysD",
    "RemoveOverlaysDict",
    "RemoveOverlaysd",
    "ToGrid",
    "ToGridD",
    "ToGridDict",
    "ToGridd",
]
