# SPDX-License-Identifier: Apache-2.0
"""Counterfactual methods as MONAI inferers, and the denoising loop they share."""

from __future__ import annotations

from medcf.inferers.attack import AttackInferer
from medcf.inferers.attention_injection import AttentionInjectionInferer
from medcf.inferers.base import CounterfactualInferer
from medcf.inferers.chain import Chain, ChainInferer
from medcf.inferers.conditional import ConditionalInferer
from medcf.inferers.counterfactual import Counterfactual
from medcf.inferers.ddim_inversion import DDIMInversionInferer
from medcf.inferers.diffice import DiffICEInferer
from medcf.inferers.diffice_single import DiffICESingleInferer
from medcf.inferers.dime import DiMEInferer
from medcf.inferers.fastdime import FastDiMEInferer
from medcf.inferers.guided import GuidedInferer
from medcf.inferers.ilvr import ILVRInferer, LowPass
from medcf.inferers.sdedit import SDEditInferer
from medcf.inferers.selection import create_method, select_method
from medcf.inferers.unchanged import UnchangedInferer
from medcf.inferers.universal import UniversalInferer
from medcf.sampling.loop import Hook, denoise, make_generators

__all__ = [
    "AttackInferer",
    "AttentionInjectionInferer",
    "Chain",
    "ChainInferer",
    "ConditionalInferer",
    "Counterfactual",
    "CounterfactualInferer",
    "DDIMInversionInferer",
    "DiMEInferer",
    "DiffICEInferer",
    "DiffICESingleInferer",
    "FastDiMEInferer",
    "GuidedInferer",
    "Hook",
    "ILVRInferer",
    "LowPass",
    "SDEditInferer",
    "UnchangedInferer",
    "UniversalInferer",
    "create_method",
    "denoise",
    "make_generators",
    "select_method",
]
