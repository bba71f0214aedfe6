# SPDX-License-Identifier: Apache-2.0
"""Networks whose results are known, for tests of every method in pictures and volumes."""

from __future__ import annotations

import torch
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import nn


class Blocks(nn.Module):
    """A linear autoencoder without loss: blocks of two pixels a side become channels."""

    def __init__(self, dims):
        super().__init__()
        self.dims = dims
        self.gain = nn.Parameter(torch.tensor(1.5))

    def encode(self, image):
        return self.gain * pixelunshuffle(image, self.dims, 2)

    def decode(self, latent):
        return pixelshuffle(latent, self.dims, 2) / self.gain


class Brightness(nn.Module):
    """Class 1 is bright."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(5.0))

    def forward(self, image):
        logit = self.slope * image.flatten(1).mean(1)
        return torch.stack([-logit, logit], dim=1)
