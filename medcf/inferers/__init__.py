# SPDX-License-Identifier: Apache-2.0
"""Counterfactual methods as MONAI inferers."""

from __future__ import annotations

from medcf.inferers.attack import AttackInferer
from medcf.inferers.attention_injection import AttentionInjectionInferer
from medcf.inferers.conditional import edit
from medcf.inferers.counterfactual import Counterfactual
from medcf.inferers.ddim_inversion import DDIMInversionInferer
from medcf.inferers.ddpm_inversion import DDPMInversionInferer
from medcf.inferers.derived import DerivedMethod, with_explain
from medcf.inferers.diffice import DiffICEInferer
from medcf.inferers.diffice_single import DiffICESingleInferer
from medcf.inferers.dime import DiMEInferer
from medcf.inferers.direct_inversion import DirectInversionInferer
from medcf.inferers.fastdime import FastDiMEInferer
from medcf.inferers.ilvr import ILVRInferer, LowPass
from medcf.inferers.method import Method
from medcf.inferers.options import ChainOptions, EditOptions, GuidanceOptions, Options, StrengthOptions
from medcf.inferers.passes import Pass
from medcf.inferers.scales import search_scales
from medcf.inferers.sdedit import SDEditInferer
from medcf.inferers.seeds import Seeded, SeededExplanation, explain_seeds, explain_with_floor
from medcf.inferers.selection import create_method, select_method
from medcf.inferers.unchanged import UnchangedInferer
from medcf.inferers.universal import UniversalInferer

__all__ = [
    "AttackInferer",
    "AttentionInjectionInferer",
    "ChainOptions",
    "Counterfactual",
    "DDIMInversionInferer",
    "DDPMInversionInferer",
    "DerivedMethod",
    "DiMEInferer",
    "DiffICEInferer",
    "DiffICESingleInferer",
    "DirectInversionInferer",
    "EditOptions",
    "FastDiMEInferer",
    "GuidanceOptions",
    "ILVRInferer",
    "LowPass",
    "Method",
    "Options",
    "Pass",
    "SDEditInferer",
    "Seeded",
    "SeededExplanation",
    "StrengthOptions",
    "UnchangedInferer",
    "UniversalInferer",
    "create_method",
    "edit",
    "explain_seeds",
    "explain_with_floor",
    "search_scales",
    "select_method",
    "with_explain",
]
