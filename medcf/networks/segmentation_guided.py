# SPDX-License-Identifier: Apache-2.0
"""The classifier that Diff-ICE explains: a predictor that sees the image and its segmentation."""

from __future__ import annotations

import torch
from torch import nn

from medcf.networks.sononet import SonoNet

__all__ = ["SegmentationGuidedClassifier"]


class SegmentationGuidedClassifier(nn.Module):
    """f(x) = l(s(x), x): the predictor l sees the probabilities of a frozen segmenter s together with the image.

    The segmenter has no trainable parameters and always stays in eval mode, whatever the classifier's mode; gradients
    pass through it to the image, so guidance by f knows the anatomy.

    Source: Diff-ICE, the classifier of its section on progressive concept-guided quality.

    Args:
        segmenter: maps an image (B, 1, *spatial) in [-1, 1] to class scores (B, K, *spatial); None for a plain
            classifier, whose predictor sees only the image.
        predictor: maps the K probabilities and the image, concatenated in this order, to class scores. ``features`` and
            ``feature_maps`` call its methods of the same names, which `SonoNet` has.
    """

    def __init__(self, segmenter: nn.Module | None, predictor: SonoNet | nn.Module) -> None:
        super().__init__()
        self.segmenter = None if segmenter is None else segmenter.requires_grad_(False).eval()
        self.predictor = predictor

    def train(self, mode: bool = True) -> SegmentationGuidedClassifier:
        """Set the predictor's mode; the segmenter stays in eval mode."""
        super().train(mode)
        if self.segmenter is not None:
            self.segmenter.eval()
        return self

    def evidence(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the predictor's input: probabilities and image, (B, K + 1, *spatial)."""
        if self.segmenter is None:
            return image
        return torch.cat([self.segmenter(image).softmax(dim=1), image], dim=1)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the predictor's feature vector (B, F) for an image (B, 1, *spatial) in [-1, 1]."""
        return self.predictor.features(self.evidence(image))  # type: ignore[operator]

    def feature_maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Compute the predictor's feature maps, one tensor per block, finest first."""
        return self.predictor.feature_maps(self.evidence(image))  # type: ignore[operator]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute class scores (logits) of shape (B, num_classes) for an image (B, 1, *spatial) in [-1, 1]."""
        return self.predictor(self.evidence(image))
