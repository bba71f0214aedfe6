# SPDX-License-Identifier: Apache-2.0
"""The five classifiers of FU-LoRA's experiment, from MONAI and transformers, for images of one channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import DenseNet169, EfficientNetBN, resnet18
from torch import Tensor, nn

from medcf.runtime.weights import read_weights

__all__ = ["CLASSIFIERS", "create_classifier"]


class Logits(nn.Module):
    """A model of transformers as a network from images to logits.

    Args:
        model: an image classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, 1, H, W)."""
        return self.model(pixel_values=images).logits


def _densenet(classes: int, size: int) -> nn.Module:
    return DenseNet169(spatial_dims=2, in_channels=1, out_channels=classes)


def _resnet(classes: int, size: int) -> nn.Module:
    # MONAI's first convolution takes every pixel, the paper's network every second one: four times faster
    return resnet18(spatial_dims=2, n_input_channels=1, num_classes=classes, conv1_t_stride=2)


def _efficientnet(classes: int, size: int) -> nn.Module:
    return EfficientNetBN("efficientnet-b0", spatial_dims=2, in_channels=1, num_classes=classes, pretrained=False)


def _mobilenet(classes: int, size: int) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    options = {"num_channels": 1, "num_labels": classes, "image_size": size}
    return Logits(MobileNetV2ForImageClassification(MobileNetV2Config(**options)))


def _vit(classes: int, size: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    options = {"num_channels": 1, "num_labels": classes, "image_size": size, "patch_size": 16}
    return Logits(ViTForImageClassification(ViTConfig(**options)))


#: By name: number of classes and side of the images to a network with random weights.
CLASSIFIERS: dict[str, Callable[[int, int], nn.Module]] = {
    "DenseNet169": _densenet,
    "ResNet18": _resnet,
    "EfficientNet-B0": _efficientnet,
    "MobileNetV2": _mobilenet,
    "ViT-B/16": _vit,
}


def create_classifier(name: str, classes: int, size: int, weights: str | Path | None = None) -> nn.Module:
    """Create a classifier, with random weights or those of ImageNet.

    Args:
        name: a key of ``CLASSIFIERS``.
        classes: number of classes.
        size: side of the images in pixels.
        weights: state dict of the same network for color images; its first convolution is summed over the colors, and
            layers that end in other shapes (the classes, a ViT's positions for another size) keep random weights.

    Raises:
        ValueError: if the name is unknown, or most of the weights do not fit.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"{name!r} is unknown: use one of {', '.join(CLASSIFIERS)}.")
    network = CLASSIFIERS[name](classes, size)
    if weights is None:
        return network
    state, given = network.state_dict(), read_weights(weights)
    prefix = "model." if isinstance(network, Logits) else ""
    fitting = {}
    for key, value in given.items():
        known = state.get(prefix + key)
        if known is not None and value.ndim == 4 and value.shape[1] == 3 and known.shape[1] == 1:
            value = value.sum(1, keepdim=True)
        if known is not None and known.shape == value.shape:
            fitting[prefix + key] = value
    share = len(fitting) / len(state)
    if share < 0.9:
        raise ValueError(f"{weights} does not hold the weights of {name}: {share:.0%} of its parameters fit.")
    with torch.no_grad():
        network.load_state_dict(fitting, strict=False)
    return network
