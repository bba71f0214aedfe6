# SPDX-License-Identifier: Apache-2.0
"""Checks of what a user passes to a method, before anything expensive runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from medcf.networks.denoiser import Network, unwrap
from medcf.runtime.choices import check_choice, check_numbers

__all__ = [
    "REACHED",
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

Target = int | Sequence[int] | torch.Tensor | Literal["opposite", "reached"]

#: Target of a prompt of one's own: the class that a result has in the end.
REACHED = "reached"


class TargetError(ValueError):
    """An impossible target: the option is wrong, not the image."""


def class_index(target: Target, class_names: Sequence[str]) -> Target:
    """Turn a class name, in any case, into its index; other targets are returned unchanged."""
    names = [name.casefold() for name in class_names]
    return names.index(target.casefold()) if isinstance(target, str) and target.casefold() in names else target


def check_target(target: Target) -> None:
    """Refuse words that are not a target, before any image is seen.

    Raises:
        TargetError: if the target is a word other than "opposite" and "reached".
    """
    if isinstance(target, str) and target not in ("opposite", REACHED):
        raise TargetError(
            f"target={target!r} is not a class: give its index, from 0, or with two classes 'opposite' for the one "
            f"that is not predicted, or with a prompt {REACHED!r} for the one that the result has."
        )


def check_image(inputs: torch.Tensor, limit: float = 1.5) -> torch.Tensor:
    """Return the images as a plain float32 tensor (B, C, *spatial).

    Args:
        inputs: images in [-1, 1]; slight overshoot from interpolation is allowed.
        limit: largest magnitude still accepted for an image in [-1, 1].

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
    if low < -limit or high > limit:
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


#: What methods call on a scheduler; ``medcf.schedulers.RespacedScheduler`` has all of it.
_SCHEDULER = ("set_timesteps", "timesteps_from", "start_timestep", "alpha_bar", "convert", "posterior", "for_chain")


def check_scheduler(scheduler: object) -> None:
    """Refuse schedulers of MONAI and diffusers, which ignore their own kept steps, and others that are incomplete.

    Raises:
        ValueError: if the scheduler is not one of ``medcf.schedulers`` and does not work like one; the message names
            the replacement, or what a third party's scheduler lacks.
    """
    missing = [name for name in _SCHEDULER if not callable(getattr(scheduler, name, None))]
    if not missing:
        return
    name = type(scheduler).__name__
    if hasattr(scheduler, "posterior"):
        raise ValueError(
            f"scheduler is a {name}, which lacks {', '.join(missing)}: add it, or derive the class from "
            "medcf.schedulers.RespacedScheduler, which has everything but posterior."
        )
    ours = "RespacedDDPMScheduler" if name == "DDPMScheduler" else "RespacedDDIMScheduler"
    remedy = f"give medcf.schedulers.{ours} with the same noise schedule and prediction_type"
    if name == "RFlowScheduler":
        remedy = f"train the network with medcf.schedulers.{ours}; one trained with rectified flow cannot be used"
    raise ValueError(f"scheduler is a {name}, which can neither start from a noised image nor be guided: {remedy}.")


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


def resolve_target(
    target: Target, batch: int, device: torch.device, logits: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Return the target class per image as a long tensor (B,).

    Args:
        target: a class, one per image, or "opposite": with two classes, the one that the classifier does not predict.
        batch: number of images.
        device: device of the result.
        logits: returns the classifier's logits (B, K) of the images; called only for "opposite".

    Raises:
        TargetError: if the number of targets is neither one nor the batch size, a class is negative or fractional, the
            target is a word other than "opposite", or "opposite" is used without exactly two classes.
    """
    check_target(target)
    if isinstance(target, str) and target == REACHED:
        raise TargetError(f"target={target!r} is for methods that follow a prompt: give the index of a class, from 0.")
    if isinstance(target, str):
        known = logits()
        if known.ndim != 2 or known.shape[1] != 2:
            raise TargetError(
                "target='opposite' needs a classifier with two classes, but its logits have shape "
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
        TargetError: if there are fewer classes than the target needs.
        ValueError: if the logits are not (B, K), or not finite.
    """
    if logits.ndim != 2 or logits.shape[0] != target.shape[0]:
        raise ValueError(
            f"classifier returned {tuple(logits.shape)} for {target.shape[0]} images: it must give logits (B, classes)."
        )
    if int(target.max()) >= logits.shape[1]:
        raise TargetError(
            f"target={int(target.max())} but the classifier has classes 0 to {logits.shape[1] - 1}: choose "
            "another target, or load a classifier that has it (a binary one needs two logits)."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "classifier returned NaN or infinite logits: check its weights, or lower classifier_scales if this "
            "happened after a pass."
        )


def default_sample_ids(image: torch.Tensor) -> list[str]:
    """Name each image by the SHA-256 of its float32 pixels, independent of batch and order."""
    return [hashlib.sha256(one.contiguous().numpy().tobytes()).hexdigest() for one in image.cpu()]
