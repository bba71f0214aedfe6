# SPDX-License-Identifier: Apache-2.0
"""DTU-Net, the segmenter that Diff-ICE's classifier looks through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import nn

__all__ = ["DTUNet", "residual_unet"]


def residual_unet(
    in_channels: int, out_channels: int, spatial_dims: int, channels: Sequence[int], num_res_units: int = 1
) -> UNet:
    """Make MONAI's residual U-Net with instance normalization that halves the image between two widths.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        spatial_dims: 2 or 3.
        channels: widths; every spatial size must be divisible by ``2 ** (len(channels) - 1)``.
        num_res_units: residual units a level.
    """
    strides, norm = (2,) * (len(channels) - 1), ("instance", {"affine": True})
    return UNet(
        spatial_dims, in_channels, out_channels, tuple(channels), strides, num_res_units=num_res_units, norm=norm
    )


class DTUNet(nn.Module):
    """Two U-Nets in sequence: a texture net segments the image, a topology net corrects it.

    From the paper: the coarse net sees the image; the fine net sees the image together with the coarse probabilities
    and learns the shape that texture alone does not give; both are supervised, and a triplet loss on the fine net's
    features pulls its view of the coarse mask towards that of the true mask.
    Simplified here: both nets are MONAI's residual U-Net with instance normalization, small by default (about 120,000
    parameters each), any number of classes, and the triplet term is left to whoever trains on curvilinear structures;
    the committed weights were trained with the two supervised terms alone.

    Source: Lin et al., "DTU-Net: learning topological similarity for curvilinear structure segmentation", IPMI 2023.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: 2 or 3.
        channels: widths of both U-Nets; every spatial size must be divisible by ``2 ** (len(channels) - 1)``.
        num_res_units: residual units a level.
        return_coarse: in training mode, return ``[fine, coarse]`` for deep supervision (MONAI's `DeepSupervisionLoss`
            takes such a list); in eval mode the fine scores alone are returned.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 5,
        spatial_dims: int = 2,
        channels: Sequence[int] = (16, 32, 48, 64),
        num_res_units: int = 1,
        return_coarse: bool = True,
    ) -> None:
        super().__init__()
        self.return_coarse = return_coarse
        options = (out_channels, spatial_dims, channels, num_res_units)
        self.coarse = residual_unet(in_channels, *options)
        self.fine = residual_unet(in_channels + out_channels, *options)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Segment an image of shape (B, in_channels, *spatial) into class scores (B, out_channels, *spatial)."""
        coarse = self.coarse(x)
        fine = self.fine(torch.cat([x, coarse.softmax(dim=1)], dim=1))
        return [fine, coarse] if self.training and self.return_coarse else fine
