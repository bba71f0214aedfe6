# SPDX-License-Identifier: Apache-2.0
"""Counterfactual loss, perceptual features and gradient estimators."""

from __future__ import annotations

from medcf.guidance.estimators import DiMEGradient, GradientEstimator, NoisyL1, X0Gradient, XtGradient
from medcf.guidance.loss import CounterfactualLoss, LossTerms
from medcf.guidance.noisy_classifier import NoisyClassifierGradient
from medcf.guidance.perceptual import PerceptualFeatures
from medcf.guidance.regions import SegmentedRegion

__all__ = [
    "CounterfactualLoss",
    "DiMEGradient",
    "GradientEstimator",
    "LossTerms",
    "NoisyClassifierGradient",
    "NoisyL1",
    "PerceptualFeatures",
    "SegmentedRegion",
    "X0Gradient",
    "XtGradient",
]
