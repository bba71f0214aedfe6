# SPDX-License-Identifier: Apache-2.0
"""Classifiers of MONAI and transformers by name, for images of one channel, with random weights or ImageNet's.

Those of the plane experiments: FU-LoRA (DenseNet169, ResNet18, EfficientNet-B0, MobileNetV2, ViT-B/16) and Tian et al.
(ResNet50, DenseNet169, ViT-B/32, Swin-T). MedMamba, their fifth, is in neither library: its scan needs CUDA kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import DenseNet169, EfficientNetBN, resnet18, resnet50
from torch import Tensor, nn

from medcf.runtime.weights import read_weights

__all__ = ["CLASSIFIERS", "create_classifier", "last_layer"]


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


def _resnet50(classes: int, size: int) -> nn.Module:
    return resnet50(spatial_dims=2, n_input_channels=1, num_classes=classes, conv1_t_stride=2)


def _efficientnet(classes: int, size: int) -> nn.Module:
    return EfficientNetBN("efficientnet-b0", spatial_dims=2, in_channels=1, num_classes=classes, pretrained=False)


def _mobilenet(classes: int, size: int) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    options = {"num_channels": 1, "num_labels": classes, "image_size": size}
    return Logits(MobileNetV2ForImageClassification(MobileNetV2Config(**options)))


def _vit(classes: int, size: int, patch: int = 16) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    options = {"num_channels": 1, "num_labels": classes, "image_size": size, "patch_size": patch}
    return Logits(ViTForImageClassification(ViTConfig(**options)))


def _vit32(classes: int, size: int) -> nn.Module:
    # a patch of 32 is a quarter of the paper's 128 pixels; smaller images keep the number of patches
    return _vit(classes, size, min(32, max(1, size // 4)))


def _swin(classes: int, size: int) -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    # three of the four stages halve the grid: small images need small patches, and windows that fit the last stage
    patch = 4 if size >= 64 else 2
    window = min(7, max(1, size // (8 * patch)))
    options = {"num_channels": 1, "num_labels": classes, "image_size": size}
    return Logits(SwinForImageClassification(SwinConfig(**options, patch_size=patch, window_size=window)))


#: By name: number of classes and side of the images to a network with random weights.
CLASSIFIERS: dict[str, Callable[[int, int], nn.Module]] = {
    "DenseNet169": _densenet,
    "ResNet18": _resnet,
    "ResNet50": _resnet50,
    "EfficientNet-B0": _efficientnet,
    "MobileNetV2": _mobilenet,
    "ViT-B/16": _vit,
    "ViT-B/32": _vit32,
    "Swin-T": _swin,
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


def last_layer(network: nn.Module) -> nn.Module:
    """Return the last module that has parameters of its own: that which gives the logits."""
    owners = [module for module in network.modules() if any(True for _ in module.parameters(recurse=False))]
    return owners[-1]
