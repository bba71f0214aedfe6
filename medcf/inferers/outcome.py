# SPDX-License-Identifier: Apache-2.0
"""What is measured on results: the target's probability, the floors of the space, the class to which a prompt led."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from medcf.inferers.checks import TargetError
from medcf.inferers.counterfactual import BatchState, Counterfactual
from medcf.sampling import Space

__all__ = ["floor_scores", "judged", "reached_class", "root_mean_square"]


def judged(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of the target (B,), and whether it is the predicted class (B,), from logits (B, K).

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
    return logits.softmax(1).gather(1, target[:, None])[:, 0], logits.argmax(1) == target


def floor_scores(space: Space, state: BatchState) -> dict[str, Tensor]:
    """Return how much of each result is the space's own doing, as values of ``Counterfactual.extras``.

    All are root mean squares in fractions of the full intensity range, over the region where the image may change.

    Args:
        space: where the chains ran.
        state: the batch after its passes.

    Returns:
        The floors of the space (`medcf.sampling.LatentSpace.floors`), ``edit_rms``, the size of the change, and
        ``below_floor``, 1 if it is smaller than the floor that counts for such results; images that were returned
        unchanged have no edit that could be. Empty for pixels.
    """
    if space.limit is None:
        return {}
    found = {name: root_mean_square(error, state.region) for name, error in space.floors(state.original).items()}
    edit = root_mean_square(state.current - state.original, state.region)
    return found | {"edit_rms": edit, "below_floor": ((edit < found[space.limit]) & ~state.unchanged).float()}


def reached_class(result: Counterfactual, logits: Callable[[Tensor], Tensor]) -> Counterfactual:
    """Return a result whose target is the class that each image reached, whatever class it was run toward.

    Args:
        result: the result of a method that follows a prompt.
        logits: images (N, C, *spatial) to logits (N, K).

    Returns:
        The same images; ``target`` is the class of the last iterate, ``confidences`` are its probability, and images
        whose class differs from the input's count as flipped.
    """
    path = result.trajectory
    probability = logits(path.flatten(0, 1)).softmax(1).unflatten(0, path.shape[:2])
    classes = probability.argmax(2)
    target = classes[:, -1]
    confidences = probability.gather(2, target[:, None, None].expand(-1, path.shape[1], 1))[..., 0]
    return replace(result, target=target, confidences=confidences, flipped=target != classes[:, 0])


def root_mean_square(image: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the root mean square (B,) of differences of images in [-1, 1], in fractions of the full intensity range.

    Args:
        image: differences (B, C, *spatial).
        region: weights (B, 1, *spatial); None counts every pixel.
    """
    square = (image / 2).square().mean(1, keepdim=True)
    weight = torch.ones_like(square) if region is None else region.to(square.dtype)
    total = weight.flatten(1).sum(1)
    return ((square * weight).flatten(1).sum(1) / total.clamp(min=1e-6)).sqrt()
