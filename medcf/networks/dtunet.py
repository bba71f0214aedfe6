# SPDX-License-Identifier: Apache-2.0
"""DTU-Net, the segmenter inside Diff-ICE's classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import nn

__all__ = ["DTUNet", "residual_unet"]


def residual_unet(in_channels: int, out_channels: int, spatial_dims: int, channels: Sequence[int]) -> UNet:
    """Create MONAI's residual U-Net with instance normalization; it halves the image between consecutive widths.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        spatial_dims: 2 or 3.
        channels: widths; every spatial size must be divisible by ``2 ** (len(channels) - 1)``.
    """
    strides, norm = (2,) * (len(channels) - 1), ("instance", {"affine": True})
    return UNet(spatial_dims, in_channels, out_channels, tuple(channels), strides, num_res_units=1, norm=norm)


class DTUNet(nn.Module):
    """Two U-Nets in sequence: a texture net segments the image, a topology net corrects it.

    From the paper: the coarse net sees the image; the fine net sees the image and the coarse probabilities and learns
    the shape that texture alone does not provide; both are supervised, and a triplet loss on the fine net's features
    pulls its view of the coarse mask toward that of the true mask.
    Simplified here: both nets are MONAI's residual U-Net with instance normalization, small by default (about 120,000
    parameters each), for any number of classes. The triplet term is left to users who train on curvilinear structures;
    the committed weights were trained with the two supervised terms only.

    Source: Lin et al., "DTU-Net: learning topological similarity for curvilinear structure segmentation", IPMI 2023.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, including background.
        spatial_dims: 2 or 3.
        channels: widths of both U-Nets; every spatial size must be divisible by ``2 ** (len(channels) - 1)``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 5,
        spatial_dims: int = 2,
        channels: Sequence[int] = (16, 32, 48, 64),
    ) -> None:
        super().__init__()
        self.coarse = residual_unet(in_channels, out_channels, spatial_dims, channels)
        self.fine = residual_unet(in_channels + out_channels, out_channels, spatial_dims, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Segment an image of shape (B, in_channels, *spatial) into class scores (B, out_channels, *spatial).

        In training mode it returns ``[fine, coarse]`` for deep supervision (MONAI's `DeepSupervisionLoss` takes such a
        list); in eval mode only the fine scores.
        """
        coarse = self.coarse(x)
        fine = self.fine(torch.cat([x, coarse.softmax(dim=1)], dim=1))
        return [fine, coarse] if self.training else fine
