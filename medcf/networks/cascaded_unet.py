# SPDX-License-Identifier: Apache-2.0
"""Two U-Nets in sequence, the segmenter inside Diff-ICE's classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import nn

__all__ = ["CascadedUNet", "residual_unet"]


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


class CascadedUNet(nn.Module):
    """Two U-Nets in sequence: the first segments the image, the second corrects the first.

    It stands in for DTU-Net, which the Diff-ICE paper puts inside its classifier, and is not DTU-Net. There, a texture
    net segments the image, and a topology net, trained with a triplet loss on its features, corrects the shape (Lin et
    al., "DTU-Net: learning topological similarity for curvilinear structure segmentation", IPMI 2023). Here both nets
    are MONAI's residual U-Net with instance normalization (about 120,000 parameters each by default), for any number
    of classes. The second sees the image and the probabilities of the first; both are supervised, and there is no
    triplet loss.

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
