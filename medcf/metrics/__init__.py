# SPDX-License-Identifier: Apache-2.0
"""Metrics of counterfactuals, on MONAI's ``CumulativeIterationMetric``."""

from __future__ import annotations

from medcf.metrics.identity import ReIdentification, pooled_pixels
from medcf.metrics.structures import StructureDice
from medcf.metrics.validity import FlipRatio, MeanQualityDifference, flip_survival, perturbations

__all__ = [
    "FlipRatio",
    "MeanQualityDifference",
    "ReIdentification",
    "StructureDice",
    "flip_survival",
    "perturbations",
    "pooled_pixels",
]
