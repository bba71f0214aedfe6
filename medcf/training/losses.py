# SPDX-License-Identifier: Apache-2.0
"""Losses for the oracle and for the network that recognizes subjects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import ContrastiveLoss, DiceCELoss
from torch import nn
from torch.nn import functional

__all__ = ["ConceptBottleneckLoss", "IdentityLoss"]


class ConceptBottleneckLoss(nn.Module):
    """Dice and cross-entropy for the segmentation, plus squared errors for concepts and quality.

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


class IdentityLoss(nn.Module):
    """SimCLR's contrastive loss on the embeddings (MONAI's), plus smooth L1 on the parameters in units of their spread.

    Args:
        std: (P,) population standard deviation of the parameters.
        temperature: temperature of the contrastive loss.
        parameter_weight: weight of the parameter term.
    """

    def __init__(self, std: Sequence[float], temperature: float = 0.1, parameter_weight: float = 5.0) -> None:
        super().__init__()
        self.contrastive = ContrastiveLoss(temperature=temperature)
        self.parameter_weight = parameter_weight
        self.std = torch.as_tensor(std).float()

    def forward(self, prediction: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            prediction: output of `medcf.networks.identity.IdentityNetwork` for 2B images; images i and i + B show the
                same subject.
            target: (2B, P) parameters in physical units.

        Returns:
            A scalar.
        """
        first, second = prediction["embedding"].chunk(2)
        std = self.std.to(target.device)
        error = functional.smooth_l1_loss(prediction["parameters"] / std, target / std)
        return self.contrastive(first, second) + self.parameter_weight * error
