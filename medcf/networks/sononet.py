# SPDX-License-Identifier: Apache-2.0
"""SonoNet, a classifier of fetal ultrasound planes."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_norm_layer
from torch import nn

__all__ = ["SonoNet"]


class SonoNet(nn.Module):
    """VGG-like classifier with global average pooling instead of fully connected layers.

    Five blocks of 3x3 convolutions with batch normalization and ReLU, (f, f), (2f, 2f), (4f) x 3, (8f) x 3, (8f) x 3,
    with max-pooling between blocks; then a 1x1 convolution to the feature maps, whose spatial mean is the feature
    vector, and a linear layer to the class scores. The paper averages the class maps instead; a 1x1 convolution and a
    mean commute, so the scores are the same except for the paper's batch normalization of the class maps, which is
    omitted.

    Source: Baumgartner et al., "SonoNet: real-time detection and localisation of fetal standard scan planes in freehand
    ultrasound", IEEE TMI 2017, figure 3.

    Args:
        in_channels: channels of the input.
        num_classes: number of class scores.
        features: width f of the first block; the paper uses 16, 32 and 64.
        spatial_dims: 2 or 3.
        num_blocks: use only the first of the five blocks. The input may be halved ``num_blocks - 1`` times; a dimension
            of size 1 is no longer pooled.
        max_features: maximum width of a block, which keeps a small network's file small; None is the paper's network.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 2,
        features: int = 16,
        spatial_dims: int = 2,
        num_blocks: int = 5,
        max_features: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= num_blocks <= 5:
            raise ValueError(f"num_blocks is {num_blocks}; SonoNet has 1 to 5 blocks.")
        self.spatial_dims = spatial_dims
        limit = max_features or 8 * features
        plan = [(features, 2), (2 * features, 2), (4 * features, 3), (8 * features, 3), (8 * features, 3)][:num_blocks]
        self.blocks = nn.ModuleList()
        channels = in_channels
        for width, depth in plan:
            out_channels = min(width, limit)
            self.blocks.append(_block(spatial_dims, channels, out_channels, depth))
            channels = out_channels
        self.num_features = max(channels // 2, 1)
        self.adaption = nn.Sequential(
            Conv[Conv.CONV, spatial_dims](channels, self.num_features, 1, bias=False),
            get_norm_layer("batch", spatial_dims, self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, num_classes)
        self._max_pool = Pool[Pool.MAX, spatial_dims]
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute the output of each block, before its pooling.

        Args:
            x: input of shape (B, in_channels, *spatial).

        Returns:
            One tensor per block, each half as large as the previous one.
        """
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(_halve(x, self._max_pool) if index else x)
            maps.append(x)
        return maps

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the feature vector, of which the class scores are a linear function.

        Args:
            x: input of shape (B, in_channels, *spatial).

        Returns:
            Tensor of shape (B, num_features), non-negative.
        """
        return self.adaption(self.feature_maps(x)[-1]).flatten(2).mean(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute class scores (logits) of shape (B, num_classes)."""
        return self.head(self.features(x))


def _block(spatial_dims: int, in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            Conv[Conv.CONV, spatial_dims](
                out_channels if index else in_channels, out_channels, 3, padding=1, bias=False
            ),
            get_norm_layer("batch", spatial_dims, out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _halve(x: torch.Tensor, max_pool: type[nn.Module]) -> torch.Tensor:
    """Max-pool by two along every dimension that can be halved."""
    kernel = [2 if size > 1 else 1 for size in x.shape[2:]]
    return max_pool(kernel)(x)
