# SPDX-License-Identifier: Apache-2.0
"""Loss of the oracle."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional

__all__ = ["ConceptBottleneckLoss"]


class ConceptBottleneckLoss(nn.Module):
    """Dice and cross-entropy of the segmentation, plus squared errors of concepts and quality.

    Args:
        segmentation_weight: weight of the segmentation term.
        concept_weight: weight of the concepts' mean squared error.
        quality_weight: weight of the quality's mean squared error.
    """

    def __init__(
        self, segmentation_weight: float = 0.5, concept_weight: float = 5.0, quality_weight: float = 5.0
    ) -> None:
        super().__init__()
        self.segmentation = DiceCELoss(to_onehot_y=True, softmax=True)
        self.weights = (segmentation_weight, concept_weight, quality_weight)

    def forward(self, prediction: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: output of `medcf.networks.ConceptBottleneck`.
            target: ``segmentation`` (B, 1, *spatial) integers, ``concepts`` (B, K), ``quality`` (B,).

        Returns:
            A scalar.
        """
        terms = (
            self.segmentation(prediction["segmentation"], target["segmentation"]),
            functional.mse_loss(prediction["concepts"], target["concepts"].float()),
            functional.mse_loss(prediction["quality"], target["quality"].float()),
        )
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()
