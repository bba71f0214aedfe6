# SPDX-License-Identifier: Apache-2.0
"""Checks of images, and of a denoising network against images and conditions, before anything expensive runs."""

from __future__ import annotations

import torch

from medcf.networks.denoiser import Network, unwrap

__all__ = ["check_classes", "check_image", "check_network", "size_divisor", "spatial_dims"]

_LIMIT = 1.5  # largest magnitude still accepted for an image in [-1, 1]


def check_image(inputs: torch.Tensor) -> torch.Tensor:
    """Return the images as a plain float32 tensor (B, C, *spatial).

    Args:
        inputs: images in [-1, 1]; slight overshoot from interpolation is allowed.

    Raises:
        ValueError: if it is not a batch of 2D or 3D images, not floating point, not finite, or out of range.
    """
    shape = tuple(getattr(inputs, "shape", ()))
    if len(shape) not in (4, 5) or shape[0] == 0:
        raise ValueError(f"inputs must be a batch (B, C, H, W) or (B, C, H, W, D) of at least one image, got {shape}.")
    if not inputs.is_floating_point():
        raise ValueError(f"inputs has dtype {inputs.dtype}: scale the image to [-1, 1] in floating point first.")
    image = torch.as_tensor(inputs).as_subclass(torch.Tensor).detach().float()
    low, high = (float(bound) for bound in torch.aminmax(image))
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError("inputs holds NaN or infinite values: clean the image before the inferer sees it.")
    if low < -_LIMIT or high > _LIMIT:
        raise ValueError(
            f"inputs ranges from {low:g} to {high:g}, but the network was trained on [-1, 1]: rescale the "
            "intensities, for example with ScaleIntensityRanged(b_min=-1, b_max=1)."
        )
    return image


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
    dims = spatial_dims(network)
    if dims is not None and dims != image.ndim - 2:
        raise ValueError(
            f"inputs has {image.ndim - 2} spatial dimensions, but the network works in {dims}: give images of shape "
            f"(B, C{', H, W, D'[: 3 * dims]})."
        )
    factor, patch = size_divisor(network), getattr(network, "patch_size", 1)
    if any(size % factor for size in image.shape[2:]):
        levels = getattr(getattr(network, "unet", network), "block_out_channels", (0,))
        size = tuple(image.shape[2:])
        blocks = f" after blocks of {patch} become channels" if patch != 1 else ""
        raise ValueError(
            f"inputs of size {size} cannot be halved {len(levels) - 1} times{blocks}: every side must be "
            f"divisible by {factor}; resample or pad, for example with DivisiblePadd(k={factor})."
        )


def spatial_dims(network: Network) -> int | None:
    """Return a network's number of spatial dimensions, that of its first convolution; None if it has none."""
    modules = network.modules() if isinstance(network, torch.nn.Module) else ()
    first = next((m for m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)), None)
    return None if first is None else len(first.kernel_size)


def size_divisor(network: Network) -> int:
    """Return the number that must divide each side of a network's images, as far as it is known; else 1."""
    levels = getattr(getattr(network, "unet", network), "block_out_channels", None)
    patch = getattr(network, "patch_size", 1)
    return (2 ** (len(levels) - 1) if levels is not None else 1) * (patch if isinstance(patch, int) else 1)


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
