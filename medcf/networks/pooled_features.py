# SPDX-License-Identifier: Apache-2.0
"""The features of MONAI's DenseNet, on which sets of images are compared."""

from __future__ import annotations

from monai.networks.nets import DenseNet
from torch import Tensor

__all__ = ["pooled_features"]


def pooled_features(network: DenseNet, image: Tensor) -> Tensor:
    """Compute the vector from which a DenseNet's class scores are a linear function.

    It is the last feature maps after their ReLU, averaged over space: what Fréchet distances on a classifier's features
    mean (FID on Inception's last pool). In a config: ``$functools.partial(pooled_features, @classifier)``. The same
    tensor comes from ``PerceptualFeatures(network, "class_layers.flatten")``.

    Args:
        network: MONAI's DenseNet, in 2D or 3D, in evaluation mode.
        image: (B, C, *spatial), in the range the network expects.

    Returns:
        Features (B, D), none negative.

    Example:
        >>> import torch
        >>> network = DenseNet(3, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2).eval()
        >>> with torch.no_grad():
        ...     pooled_features(network, torch.zeros(2, 1, 16, 16, 16)).shape
        torch.Size([2, 16])
    """
    pooled: Tensor = network.class_layers[:-1](network.features(image))
    return pooled
