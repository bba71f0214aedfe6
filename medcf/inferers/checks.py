# SPDX-License-Identifier: Apache-2.0
"""Checks of what a user hands to a method, before anything expensive runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from medcf.networks.denoiser import unwrap
from medcf.runtime.choices import check_choice, check_numbers

__all__ = [
    "TargetError",
    "check_choice",
    "check_classes",
    "check_image",
    "check_logits",
    "check_network",
    "check_numbers",
    "check_scheduler",
    "check_target",
    "class_index",
    "default_sample_ids",
    "resolve_target",
]

Target = int | Sequence[int] | torch.Tensor | Literal["opposite"]


class TargetError(ValueError):
    """A target that no image can be brought to: the option is wrong, not the image."""


def class_index(target: Target, class_names: Sequence[str]) -> Target:
    """Turn the name of a class, in any case, into its index; other targets stay as they are."""
    names = [name.casefold() for name in class_names]
    return names.index(target.casefold()) if isinstance(target, str) and target.casefold() in names else target


def check_target(target: Target) -> None:
    """Refuse words that name no target, before any image is seen.

    Raises:
        TargetError: another word than "opposite".
    """
    if isinstance(target, str) and target != "opposite":
        raise TargetError(
            f"target={target!r} is no class: give its index, counted from 0, or of two classes 'opposite' for the one "
            "that is not predicted."
        )


def check_image(inputs: torch.Tensor, limit: float = 1.5) -> torch.Tensor:
    """Return the images as a plain float32 tensor (B, C, *spatial).

    Args:
        inputs: images in [-1, 1]; a little overshoot of interpolation is allowed.
        limit: largest magnitude that still passes for an image in [-1, 1].

    Raises:
        ValueError: no batch of 2D or 3D images, not floating point, not finite, or outside the range.
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
    if low < -limit or high > limit:
        raise ValueError(
            f"inputs reaches from {low:g} to {high:g}, but the network was trained on [-1, 1]: rescale the "
            "intensities, for example with ScaleIntensityRanged(b_min=-1, b_max=1)."
        )
    return image


def check_network(network: Any, image: torch.Tensor) -> None:
    """Compare the images with a MONAI diffusion network's channels, dimensions and depth, as far as it tells them.

    Raises:
        ValueError: wrong channels, wrong number of spatial dimensions, or a size the network cannot halve often enough.
    """
    network = unwrap(network)
    channels = getattr(network, "in_channels", None)
    if isinstance(channels, int) and channels != image.shape[1]:
        raise ValueError(
            f"inputs has {image.shape[1]} channels, the network takes in_channels={channels}: convert the image, or "
            "load the network that belongs to it."
        )
    modules = network.modules() if isinstance(network, torch.nn.Module) else ()
    first = next((m for m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)), None)
    if first is not None and len(first.kernel_size) != image.ndim - 2:
        raise ValueError(
            f"inputs has {image.ndim - 2} spatial dimensions, the network works in {len(first.kernel_size)}: give "
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


def check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers of MONAI and diffusers, which do not follow their own kept steps, and name ours.

    Raises:
        ValueError: the scheduler is none of ``medcf.schedulers``, nor works as they do.
    """
    if all(hasattr(scheduler, name) for name in ("convert", "posterior", "timesteps_from", "alpha_bar")):
        return
    name = type(scheduler).__name__
    ours = "RespacedDDPMScheduler" if name == "DDPMScheduler" else "RespacedDDIMScheduler"
    remedy = f"give medcf.schedulers.{ours} with the same noise schedule and prediction_type"
    if name == "RFlowScheduler":
        remedy = f"train the network with medcf.schedulers.{ours}; one trained by rectified flow cannot be used"
    raise ValueError(f"scheduler is a {name}, which cannot start from a noised image nor be guided: {remedy}.")


def check_classes(network: Any, name: str) -> None:
    """Refuse a network without classes, whose ``num_class_embeds`` is None, for the method of this name.

    Raises:
        ValueError: the network knows no classes.
    """
    if getattr(unwrap(network), "num_class_embeds", 1) is None:
        raise ValueError(
            f"{name} needs a class-conditional network (num_class_embeds), and this one has no classes: train one "
            "with class labels, or use a method that is guided by the classifier."
        )


def resolve_target(
    target: Target, batch: int, device: torch.device, logits: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Return the wanted class per image as a long tensor (B,).

    Args:
        target: a class, one per image, or "opposite": of two classes the one that the classifier does not predict.
        batch: number of images.
        device: where the tensor is to be.
        logits: gives the classifier's logits (B, K) of the images; called for "opposite" only.

    Raises:
        TargetError: a number of targets that is neither one nor the batch's, a negative or fractional class, another
            word than "opposite", or "opposite" with a classifier of other than two classes.
    """
    check_target(target)
    if isinstance(target, str):
        known = logits()
        if known.ndim != 2 or known.shape[1] != 2:
            raise TargetError(
                "target='opposite' needs a classifier of two classes, and was used with logits of shape "
                f"{tuple(known.shape)}: give an index."
            )
        return (1 - known.argmax(1)).to(device)
    tensor = torch.as_tensor(target, device=device)
    if tensor.is_floating_point() or tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, batch)):
        raise TargetError(f"target must be a class index or one per image of the batch of {batch}, got {target!r}.")
    if int(tensor.min()) < 0:
        raise TargetError(f"target={target!r} holds a negative class index.")
    return tensor.long().reshape(-1).expand(batch).clone()


def check_logits(logits: torch.Tensor, target: torch.Tensor) -> None:
    """Compare the classifier's output with the batch and the targets.

    Raises:
        TargetError: fewer classes than the target needs.
        ValueError: not (B, K) logits, or values that are not finite.
    """
    if logits.ndim != 2 or logits.shape[0] != target.shape[0]:
        raise ValueError(
            f"classifier returned {tuple(logits.shape)} for {target.shape[0]} images: it must give logits (B, classes)."
        )
    if int(target.max()) >= logits.shape[1]:
        raise TargetError(
            f"target={int(target.max())} but the classifier knows classes 0 to {logits.shape[1] - 1}: choose "
            "another target, or load the classifier that knows it (a binary one needs two logits)."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "classifier returned NaN or infinite logits: check its weights, or lower classifier_scales if this "
            "happened after a pass."
        )


def default_sample_ids(image: torch.Tensor) -> list[str]:
    """Name each image by the SHA-256 of its float32 pixels, which no batch or order changes."""
    return [hashlib.sha256(one.contiguous().numpy().tobytes()).hexdigest() for one in image.cpu()]
