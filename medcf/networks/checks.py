# SPDX-License-Identifier: Apache-2.0
"""Checks of a denoising network against the images and conditions it is to take, before anything expensive runs."""

from __future__ import annotations

import torch

from medcf.networks.denoiser import Network, unwrap

__all__ = ["check_classes", "check_network"]


def check_network(network: Network, image: torch.Tensor) -> None:
    """Compare the images with a MONAI diffusion network's channels, dimensions and depth, as far as they are known.

    Raises:
        ValueError: if channels or spatial dimensions are wrong, or the network cannot halve the size often enough.
    """
    network = unwrap(network)
    channels = getattr(network, "in_channels", None)
    if isinstance(channels, int) and channels != image.shape[1]:
        raise ValueError(
            f"inputs has {image.shape[1]} channels, but the network takes in_channels={channels}: convert the image or "
            "load the matching network."
        )
    modules = network.modules() if isinstance(network, torch.nn.Module) else ()
    first = next((m for m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)), None)
    if first is not None and len(first.kernel_size) != image.ndim - 2:
        raise ValueError(
            f"inputs has {image.ndim - 2} spatial dimensions, but the network works in {len(first.kernel_size)}: give "
            f"images of shape (B, C{', H, W, D'[: 3 * len(first.kernel_size)]})."
        )
    levels = getattr(getattr(network, "unet", network), "block_out_channels", None)
    patch = getattr(network, "patch_size", 1)
    factor = (2 ** (len(levels) - 1) if levels is not None else 1) * (patch if isinstance(patch, int) else 1)
    if any(size % factor for size in image.shape[2:]):
        size = tuple(image.shape[2:])
        blocks = f" after blocks of {patch} become channels" if factor > 1 and patch != 1 else ""
        raise ValueError(
            f"inputs of size {size} cannot be halved {len(levels or (0,)) - 1} times{blocks}: every side must be "
            f"divisible by {factor}; resample or pad, for example with DivisiblePadd(k={factor})."
        )


def check_classes(network: Network, name: str, by_class: bool = True) -> None:
    """Refuse a network without classes, whose ``num_class_embeds`` is None, for the named method.

    Raises:
        ValueError: if the network has no classes, and is conditioned by them.
    """
    if by_class and getattr(unwrap(network), "num_class_embeds", 1) is None:
        raise ValueError(
            f"{name} needs a class-conditional network (num_class_embeds), but this one has no classes: train one "
            "with class labels, give prompts if it takes them (conditioner=Conditioner(contexts=..., by_class=False)), "
            "or use a method that is guided by the classifier."
        )
