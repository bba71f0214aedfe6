# SPDX-License-Identifier: Apache-2.0
"""A DenseNet for volumes on a grid other than the one it was trained on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from monai.networks.nets import DenseNet
from torch import nn

__all__ = ["ResizedDenseNet"]

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class ResizedDenseNet(DenseNet):
    """MONAI's `DenseNet` that first resamples images to its training grid, by linear interpolation.

    ControlCG trains its classifier at 160 x 192 x 160 and generates at 80 x 96 x 80; generated volumes are upsampled
    for the classifier. The weights are those of a plain `DenseNet` with the same options, under the same names.

    Args:
        size: training grid, with the same field of view as the images.
        spatial_dims: 1, 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes.
        **options: further arguments of `DenseNet`.

    Raises:
        ValueError: if ``size`` does not have ``spatial_dims`` entries.

    Example:
        >>> import torch
        >>> small = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2), "bn_size": 2}
        >>> ResizedDenseNet((16, 24, 16), 3, 1, 2, **small).eval()(torch.zeros(1, 1, 8, 12, 8)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, size: Sequence[int], spatial_dims: int, in_channels: int, out_channels: int, **options: Any
    ) -> None:
        if len(size) != spatial_dims:
            raise ValueError(f"size={list(size)} must have {spatial_dims} entries, one per axis.")
        super().__init__(spatial_dims, in_channels, out_channels, **options)
        resize = nn.Upsample(size=tuple(size), mode=_MODES[spatial_dims], align_corners=False)
        self.features = nn.Sequential(OrderedDict([("resize", resize), *self.features.named_children()]))
