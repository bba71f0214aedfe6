# SPDX-License-Identifier: Apache-2.0
"""SonoNet with the weights that its authors published."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from medcf.networks.sononet import SonoNet
from medcf.runtime.weights import load_weights, read_weights

__all__ = ["PublishedSonoNet", "sononet_name"]

_FIRST = "features.0.0.0.weight"


class PublishedSonoNet(nn.Module):
    """The pooled features of SonoNet-16, -32 or -64 as published: 64, 128 or 256 of them.

    Images are resized to 224 x 288 pixels, and each is standardized and multiplied by 255, as in the training of these
    weights. Source: Baumgartner et al., see `SonoNet`; the weights know thirteen standard planes and the background.

    Args:
        features: width of the first block: 16, 32 or 64.
        size: rows and columns that an image is resized to; None leaves it as it is.
    """

    def __init__(self, features: int = 64, size: tuple[int, int] | None = (224, 288)) -> None:
        super().__init__()
        self.size = size
        self.network = SonoNet(in_channels=1, features=features)
        self.network.head = nn.Identity()  # type: ignore[assignment]  # features only
        self.num_features = self.network.num_features
        for module in self.network.blocks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-4  # of the published weights' batch normalization; the adaption's is torch's

    @classmethod
    def from_file(cls, path: Path, remedy: str = "") -> PublishedSonoNet:
        """Load a file of published weights; their width says which SonoNet it is.

        Args:
            path: state dict with the names of the PyTorch conversion, such as ``features.0.0.0.weight``.
            remedy: ends the message of an error.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds another network.
        """
        first = read_weights(path, remedy=remedy).get(_FIRST)
        if first is None:
            raise ValueError(f"{path} does not hold a published SonoNet: it has no {_FIRST}. {remedy}")
        extractor = cls(len(first))
        load_weights(extractor.network, path, remedy=remedy, rename=sononet_name)
        return extractor

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 1, H, W) of any range to features (B, num_features); color is averaged."""
        x = image.mean(1, keepdim=True)
        if self.size is not None:
            x = functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True, correction=0)
        return self.network.features(255 * (x - mean) / std.clamp_min(1e-6))


def sononet_name(name: str) -> str | None:
    """Translate a name of the published weights: their blocks hold layers of three modules, ours the modules alone.

    ``features.2.1.0.weight`` is ``blocks.2.3.weight``. The class maps, which features do not need, are left out.
    """
    if re.match(r"adaption\.[34]\.", name) or name.endswith(".num_batches_tracked"):
        return None
    if found := re.fullmatch(r"features\.(\d+)\.(\d+)\.(\d+)\.(\w+)", name):
        block, layer, module = (int(part) for part in found.groups()[:3])
        return f"blocks.{block}.{3 * layer + module}.{found.group(4)}"
    return name
