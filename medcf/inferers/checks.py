# SPDX-License-Identifier: Apache-2.0
"""Checks of the images and the target that a user passes to a method, before anything expensive runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from medcf.networks.checks import check_image, check_network
from medcf.networks.classifier_adapter import notice_unit_range
from medcf.networks.denoiser import Network
from medcf.sampling import PixelSpace

if TYPE_CHECKING:
    from medcf.inferers.method import Method

__all__ = [
    "REACHED",
    "TargetError",
    "check_follows_prompt",
    "check_inputs",
    "check_target",
    "class_index",
    "resolve_target",
]

Target = int | Sequence[int] | torch.Tensor | Literal["opposite", "reached"]

#: Target of a prompt of one's own: the class that a result has in the end.
REACHED = "reached"


class TargetError(ValueError):
    """An impossible target: the option is wrong, not the image."""


def class_index(target: Target, class_names: Sequence[str]) -> Target:
    """Turn a class name, in any case, into its index; other targets are returned unchanged.

    Raises:
        TargetError: if the target is a word that is neither a name nor "opposite" or "reached".
    """
    names = [name.casefold() for name in class_names]
    if isinstance(target, str) and target.casefold() in names:
        return names.index(target.casefold())
    check_target(target, class_names)
    return target


def check_target(target: Target, class_names: Sequence[str] = ()) -> None:
    """Refuse words that are not a target, before any image is seen.

    Raises:
        TargetError: if the target is a word other than "opposite" and "reached".
    """
    if isinstance(target, str) and target not in ("opposite", REACHED):
        known = f"its name ({', '.join(class_names)}) or its index" if class_names else "its index"
        raise TargetError(
            f"target={target!r} is not a class: give {known}, from 0, or with two classes 'opposite' for the one "
            f"that is not predicted, or with a prompt {REACHED!r} for the one that the result has."
        )


def check_inputs(
    method: Method, inputs: torch.Tensor, network: Network | None, sample_ids: Sequence[Hashable] | None
) -> tuple[torch.Tensor, list[Hashable]]:
    """Return the images as a plain tensor (B, C, *spatial), and their identities, by default hashes of their pixels.

    Raises:
        ValueError: if images, network and identities do not match.
        RuntimeError: if the method needs gradients, and ``torch.inference_mode()`` forbids them.
    """
    if method.needs_gradients and torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{type(method).__name__} needs gradients of the classifier: use torch.no_grad(), not inference_mode()."
        )
    image = check_image(inputs)
    notice_unit_range(image, method.classifier)
    if method.needs_network and isinstance(method.space, PixelSpace):
        check_network(network, image)  # type: ignore[arg-type]
    if sample_ids is None:  # independent of batch and order
        return image, [hashlib.sha256(one.contiguous().numpy().tobytes()).hexdigest() for one in image.cpu()]
    ids = list(sample_ids)
    if len(ids) != len(image):
        raise ValueError(
            f"sample_ids holds {len(ids)} identities for a batch of {len(image)} images: give one per image."
        )
    return image, ids


def check_follows_prompt(method: Method) -> None:
    """Refuse "reached" as the target of a method that has a class to go to.

    Raises:
        TargetError: if the method does not follow a prompt of its own.
    """
    if not method.needs_network or method.needs_gradients or method.conditioner.prompt is None:
        raise TargetError(
            f"target={REACHED!r} takes a method that follows a prompt of its own, and {type(method).__name__} has a "
            "class to go to here: give its index, from 0."
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
