# SPDX-License-Identifier: Apache-2.0
"""Transforms in MONAI's style: overlay removal, to the network's grid and back, difference maps, augmentation."""

from __future__ import annotations

from medcf.transforms.corrections import CorrectBias, CorrectBiasD, CorrectBiasd, CorrectBiasDict
from medcf.transforms.counterfactual import (
    RandCounterfactual,
    RandCounterfactualD,
    RandCounterfactuald,
    RandCounterfactualDict,
)
from medcf.transforms.difference import AddDifference, AddDifferenceD, AddDifferenced, AddDifferenceDict
from medcf.transforms.difference_map import DifferenceMap, DifferenceMapD, DifferenceMapd, DifferenceMapDict
from medcf.transforms.grid import ToGrid, ToGridD, ToGridd, ToGridDict
from medcf.transforms.overlays import RemoveOverlays, RemoveOverlaysD, RemoveOverlaysd, RemoveOverlaysDict
from medcf.transforms.region_swap import RandRegionSwap, RandRegionSwapD, RandRegionSwapd, RandRegionSwapDict
from medcf.transforms.synthetic import RandSynthetic, RandSyntheticD, RandSyntheticd, RandSyntheticDict
from medcf.transforms.torchio_adapter import TorchIO, TorchIOD, TorchIOd, TorchIODict
from medcf.transforms.ultrasound import (
    RandAcousticShadow,
    RandAcousticShadowD,
    RandAcousticShadowd,
    RandAcousticShadowDict,
    RandGain,
    RandGainD,
    RandGaind,
    RandGainDict,
    RandSpeckle,
    RandSpeckleD,
    RandSpeckled,
    RandSpeckleDict,
)
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
    "RandAcousticShadow",
    "RandAcousticShadowD",
    "RandAcousticShadowDict",
    "RandAcousticShadowd",
    "RandCounterfactual",
    "RandCounterfactualD",
    "RandCounterfactualDict",
    "RandCounterfactuald",
    "RandGain",
    "RandGainD",
    "RandGainDict",
    "RandGaind",
    "RandRegionSwap",
    "RandRegionSwapD",
    "RandRegionSwapDict",
    "RandRegionSwapd",
    "RandSpeckle",
    "RandSpeckleD",
    "RandSpeckleDict",
    "RandSpeckled",
    "RandSynthetic",
    "RandSyntheticD",
    "RandSyntheticDict",
    "RandSyntheticd",
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
    "TorchIO",
    "TorchIOD",
    "TorchIODict",
    "TorchIOd",
]
