# SPDX-License-Identifier: Apache-2.0
"""The methods' networks, and a common interface for their denoisers."""

from __future__ import annotations

from medcf.networks.attention_injection import AttentionInjection
from medcf.networks.autoencoder import BundleAutoencoder
from medcf.networks.cascaded_unet import CascadedUNet
from medcf.networks.class_token import ClassTokenUNet
from medcf.networks.classifier_adapter import ClassifierAdapter
from medcf.networks.concept_bottleneck import ConceptBottleneck
from medcf.networks.condition import Condition, Conditioner
from medcf.networks.controlled_unet import ControlledUNet, StructureMask
from medcf.networks.denoiser import Denoiser, References
from medcf.networks.pooled_features import pooled_features
from medcf.networks.prompt_unet import PromptUNet
from medcf.networks.prompts import prompt_conditioner
from medcf.networks.resized_densenet import ResizedDenseNet
from medcf.networks.segmentation_guided import SegmentationGuidedClassifier
from medcf.networks.sononet import SonoNet
from medcf.networks.text_encoder import TextEncoder
from medcf.networks.wrapper import BundleUNet

__all__ = [
    "AttentionInjection",
    "BundleAutoencoder",
    "BundleUNet",
    "CascadedUNet",
    "ClassTokenUNet",
    "ClassifierAdapter",
    "ConceptBottleneck",
    "Condition",
    "Conditioner",
    "ControlledUNet",
    "Denoiser",
    "PromptUNet",
    "References",
    "ResizedDenseNet",
    "SegmentationGuidedClassifier",
    "SonoNet",
    "StructureMask",
    "TextEncoder",
    "pooled_features",
    "prompt_conditioner",
]
