# SPDX-License-Identifier: Apache-2.0
"""Features of MONAI's DenseNet, used to compare sets of images."""

from __future__ import annotations

from monai.networks.nets import DenseNet
from torch import Tensor

__all__ = ["pooled_features"]


def pooled_features(network: DenseNet, image: Tensor) -> Tensor:
    """Compute the feature vector of a DenseNet, of which its class scores are a linear function.

    These are the last feature maps after ReLU, averaged over space, as used for Fréchet distances on a classifier's
    features (FID uses Inception's last pool). In a config: ``$functools.partial(pooled_features, @classifier)``.
    ``PerceptualFeatures(network, "class_layers.flatten")`` gives the same tensor.

    Args:
        network: MONAI's DenseNet, in 2D or 3D, in eval mode.
        image: (B, C, *spatial), in the range the network expects.

    Returns:
        Features (B, D), non-negative.

    Example:
        >>> import torch
        >>> network = DenseNet(3, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2).eval()
        >>> with torch.no_grad():
        ...     pooled_features(network, torch.zeros(2, 1, 16, 16, 16)).shape
        torch.Size([2, 16])
    """
    pooled: Tensor = network.class_layers[:-1](network.features(image))
    return pooled
