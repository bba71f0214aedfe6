# SPDX-License-Identifier: Apache-2.0
"""The networks of ``paper.json`` with random weights: time, memory and operations do not depend on their values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from medcf.bundle import bundle_folder
from medcf.guidance import PerceptualFeatures
from medcf.networks import SegmentationGuidedClassifier

__all__ = ["PAPER", "SMALL", "Networks", "build", "images_and_target"]

PAPER: dict[str, Any] = {}
"""No change to ``paper.json``: images of 224 x 288."""

SMALL: dict[str, Any] = {
    "spatial_size": [32, 48],
    "network_def#channels": [16, 32],
    "network_def#attention_levels": [False, True],
    "network_def#num_res_blocks": 1,
    "network_def#norm_num_groups": 8,
    "network_def#num_head_channels": 8,
    "segmenter_def#channels": [4, 8, 8, 8],
    "predictor_def#features": 4,
    "predictor_def#num_blocks": 2,
}
"""The same kinds of networks, small enough for a test."""


class Networks(NamedTuple):
    """What a pass calls.

    Attributes:
        denoiser: the U-Net.
        classifier: segmenter and predictor.
        perceptual: features of a network of its own.
        size: height and width of the images.
    """

    denoiser: nn.Module
    classifier: nn.Module
    perceptual: PerceptualFeatures
    size: tuple[int, int]


def build(device: torch.device | str, changes: dict[str, Any]) -> Networks:
    """Build the networks of ``inference.json`` and ``paper.json``.

    Args:
        device: where to put them.
        changes: ids of the config and their values; `PAPER` or `SMALL`.
    """
    torch.manual_seed(0)
    configs = bundle_folder("diffice") / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "inference.json"), str(configs / "paper.json")])
    parser.update({"perceptual#weights": None, "bundle_root": str(configs.parent), **changes})
    classifier = SegmentationGuidedClassifier(
        parser.get_parsed_content("segmenter_def"), parser.get_parsed_content("predictor_def")
    )
    networks = Networks(
        parser.get_parsed_content("network_def"),
        classifier,
        parser.get_parsed_content("perceptual"),
        tuple(parser.get_parsed_content("spatial_size")),
    )
    for module in (networks.denoiser, classifier, networks.perceptual):
        module.eval().requires_grad_(False).to(device)
    return networks


def images_and_target(networks: Networks, count: int, device: torch.device | str) -> tuple[Tensor, int]:
    """Return random images (N, 1, H, W) in [-1, 1] and a class that none of them has, so that all of them run."""
    images = torch.rand(count, 1, *networks.size, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    with torch.no_grad():
        logits = networks.classifier(images)
        gap = logits[:, 0] - logits[:, 1]
        head = networks.classifier.get_submodule("predictor.head")
        head.get_parameter("bias")[0] -= (
            gap.min() - 1
        )  # random weights may take the images for either class: now all are class 0
    return images, 1
