# SPDX-License-Identifier: Apache-2.0
"""Checks of the images and the target that a user passes to a method, before anything expensive runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch

__all__ = [
    "REACHED",
    "TargetError",
    "check_image",
    "check_logits",
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
