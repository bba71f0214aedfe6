# SPDX-License-Identifier: Apache-2.0
"""The oracle: derives image quality from concepts, and concepts from anatomy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from medcf.networks.cascaded_unet import residual_unet
from medcf.networks.sononet import SonoNet

__all__ = ["ConceptBottleneck", "MonotoneQuality"]


class MonotoneQuality(nn.Module):
    """Quality as an increasing function of each concept.

    A two-layer perceptron with positive weights (softplus of free parameters): a better concept never lowers the
    quality, so the score can be read like a checklist.

    Args:
        num_concepts: number of concepts K.
        hidden: width of the hidden layer.
    """

    def __init__(self, num_concepts: int, hidden: int = 16) -> None:
        super().__init__()
        self.weight_in = nn.Parameter(torch.randn(hidden, num_concepts) * 0.5)
        self.bias_in = nn.Parameter(torch.linspace(-2.0, 0.0, hidden))
        self.weight_out = nn.Parameter(torch.randn(1, hidden) * 0.5 - 1.0)
        self.bias_out = nn.Parameter(torch.full((1,), -2.0))

    def forward(self, concepts: torch.Tensor) -> torch.Tensor:
        """Map concept scores (B, K) in [0, 1] to quality (B,) in [0, 1]."""
        hidden = torch.sigmoid(
            functional.linear(4.0 * (concepts - 0.5), functional.softplus(self.weight_in), self.bias_in)
        )
        return torch.sigmoid(functional.linear(hidden, functional.softplus(self.weight_out), self.bias_out)).squeeze(1)


class ConceptBottleneck(nn.Module):
    """Progressive concept bottleneck: image, then segmentation, then concept scores, then quality.

    Each stage sees only what the paper allows: concepts come from the segmentation's probabilities and the image,
    quality from the concepts alone. As the oracle that judges counterfactuals it must share nothing with the explained
    classifier: other subjects, seed, initialization and augmentation.

    Source: Lin et al., "I saw, I conceived, I concluded: progressive concepts as bottlenecks", 2022; Diff-ICE uses it
    as its oracle. Simplified here: this package's small U-Net and SonoNet, and a monotone map from concepts to quality.

    Args:
        num_concepts: number of concepts K.
        in_channels: channels of the image.
        num_segments: number of segmentation classes, including background.
        spatial_dims: 2 or 3.
        channels: widths of the segmentation U-Net; every spatial size must be divisible by
            ``2 ** (len(channels) - 1)``.
        features: width of the concept encoder's first block, see `SonoNet`.
        max_features: maximum width of the concept encoder.
        num_blocks: number of blocks in the concept encoder.
    """

    def __init__(
        self,
        num_concepts: int,
        in_channels: int = 1,
        num_segments: int = 5,
        spatial_dims: int = 2,
        channels: Sequence[int] = (16, 32, 48, 64),
        features: int = 12,
        max_features: int = 32,
        num_blocks: int = 5,
    ) -> None:
        super().__init__()
        self.segmenter = residual_unet(in_channels, num_segments, spatial_dims, channels)
        self.encoder = SonoNet(
            in_channels + num_segments,
            num_classes=num_concepts,
            features=features,
            spatial_dims=spatial_dims,
            num_blocks=num_blocks,
            max_features=max_features,
        )
        self.quality = MonotoneQuality(num_concepts)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the concept encoder's feature vector (B, F) of an image (B, in_channels, *spatial) in [-1, 1]."""
        return self.encoder.features(self._evidence(image, self.segmenter(image)))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Judge an image.

        Args:
            image: tensor of shape (B, in_channels, *spatial) in [-1, 1].

        Returns:
            ``segmentation`` scores (B, num_segments, *spatial), ``concepts`` (B, K) in [0, 1], ``quality`` (B,) in
            [0, 1].
        """
        segmentation = self.segmenter(image)
        concepts = torch.sigmoid(self.encoder(self._evidence(image, segmentation)))
        return {"segmentation": segmentation, "concepts": concepts, "quality": self.quality(concepts)}

    @staticmethod
    def _evidence(image: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
        return torch.cat([segmentation.softmax(dim=1), image], dim=1)
