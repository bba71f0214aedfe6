# SPDX-License-Identifier: Apache-2.0
"""Counterfactual methods as MONAI inferers."""

from __future__ import annotations

from medcf.inferers.attack import AttackInferer
from medcf.inferers.attention_injection import AttentionInjectionInferer
from medcf.inferers.base import CounterfactualInferer
from medcf.inferers.chain import ChainInferer
from medcf.inferers.conditional import ConditionalInferer
from medcf.inferers.counterfactual import Counterfactual
from medcf.inferers.ddim_inversion import DDIMInversionInferer
from medcf.inferers.derived import DerivedMethod, with_explain
from medcf.inferers.diffice import DiffICEInferer
from medcf.inferers.diffice_single import DiffICESingleInferer
from medcf.inferers.dime import DiMEInferer
from medcf.inferers.fastdime import FastDiMEInferer
from medcf.inferers.floor import SeededExplanation, explain_with_floor
from medcf.inferers.guided import GuidedInferer
from medcf.inferers.ilvr import ILVRInferer, LowPass
from medcf.inferers.sdedit import SDEditInferer
from medcf.inferers.selection import create_method, select_method
from medcf.inferers.unchanged import UnchangedInferer
from medcf.inferers.universal import UniversalInferer

__all__ = [
    "AttackInferer",
    "AttentionInjectionInferer",
    "ChainInferer",
    "ConditionalInferer",
    "Counterfactual",
    "CounterfactualInferer",
    "DDIMInversionInferer",
    "DerivedMethod",
    "DiMEInferer",
    "DiffICEInferer",
    "DiffICESingleInferer",
    "FastDiMEInferer",
    "GuidedInferer",
    "ILVRInferer",
    "LowPass",
    "SDEditInferer",
    "SeededExplanation",
    "UnchangedInferer",
    "UniversalInferer",
    "create_method",
    "explain_with_floor",
    "select_method",
    "with_explain",
]
