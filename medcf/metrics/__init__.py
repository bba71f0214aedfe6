# SPDX-License-Identifier: Apache-2.0
"""Metrics for counterfactuals, based on MONAI's ``CumulativeIterationMetric``; importing them registers their names."""

from __future__ import annotations

from medcf.metrics.accuracy import BalancedAccuracy
from medcf.metrics.agreement import OracleAgreement
from medcf.metrics.axioms import axioms
from medcf.metrics.base import CaseMetric, Counts, Mean
from medcf.metrics.biometry import BiometryShift, head_biometry
from medcf.metrics.bootstrap import bootstrap_interval
from medcf.metrics.class_distances import ClassDistances
from medcf.metrics.confidence import BoundedKL, MeanAbsoluteDifference
from medcf.metrics.cout import COUT, transition_curves
from medcf.metrics.effectiveness import Amplification, ClassEffectiveness, Effectiveness
from medcf.metrics.frechet import FrechetDistance, frechet_distance
from medcf.metrics.identity import ReIdentification, pooled_pixels
from medcf.metrics.inner_voxels import InnerVoxels
from medcf.metrics.kernel_distance import KernelDistance, kernel_distance
from medcf.metrics.lateralized import Lateralized
from medcf.metrics.localization import ChangeAUPRC, ChangeIoU, PointingGame
from medcf.metrics.perceptual_distance import PerceptualDistance
from medcf.metrics.quality import MeanQualityDifference, StructureQualityDifference, quality_by_input
from medcf.metrics.robustness import FlipSurvival, SeedAgreement, flip_survival, perturbations
from medcf.metrics.sharpness import Sharpness
from medcf.metrics.similarity import MSE, PSNR, SSIM, FeatureCosine, MultiScaleSSIM
from medcf.metrics.structures import StructureChanges, StructureDice, structure_change
from medcf.metrics.subject_parameters import SubjectParameters
from medcf.metrics.truth import RelativeTruthError, TruthError, TruthSimilarity, TruthSimilarityGain
from medcf.metrics.validity import FlipRatio
from medcf.metrics.volumes import SegmentedVolumes, VolumeChange

__all__ = [
    "COUT",
    "MSE",
    "PSNR",
    "SSIM",
    "Amplification",
    "BalancedAccuracy",
    "BiometryShift",
    "BoundedKL",
    "CaseMetric",
    "ChangeAUPRC",
    "ChangeIoU",
    "ClassDistances",
    "ClassEffectiveness",
    "Counts",
    "Effectiveness",
    "FeatureCosine",
    "FlipRatio",
    "FlipSurvival",
    "FrechetDistance",
    "InnerVoxels",
    "KernelDistance",
    "Lateralized",
    "Mean",
    "MeanAbsoluteDifference",
    "MeanQualityDifference",
    "MultiScaleSSIM",
    "OracleAgreement",
    "PerceptualDistance",
    "PointingGame",
    "ReIdentification",
    "RelativeTruthError",
    "SeedAgreement",
    "SegmentedVolumes",
    "Sharpness",
    "StructureChanges",
    "StructureDice",
    "StructureQualityDifference",
    "SubjectParameters",
    "TruthError",
    "TruthSimilarity",
    "TruthSimilarityGain",
    "VolumeChange",
    "axioms",
    "bootstrap_interval",
    "flip_survival",
    "frechet_distance",
    "head_biometry",
    "kernel_distance",
    "perturbations",
    "pooled_pixels",
    "quality_by_input",
    "structure_change",
    "transition_curves",
]
