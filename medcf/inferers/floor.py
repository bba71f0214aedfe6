# SPDX-License-Identifier: Apache-2.0
"""Runs any method with several seeds and computes the floor of its differences: what it changes without being asked."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from medcf.inferers.checks import Target, check_choice
from medcf.inferers.counterfactual import Counterfactual
from medcf.runtime.frozen import frozen

__all__ = ["SeededExplanation", "explain_with_floor"]

Floor = Literal["unguided", "source"]


@dataclass(frozen=True)
class SeededExplanation:
    """Counterfactuals of a batch of B images for S seeds, each with the method's floor.

    Attributes:
        pred: counterfactuals (S, B, C, *spatial).
        reconstruction: results of the same passes with the same noise when no other class is requested, same shape.
        results: the full counterfactuals, one per seed.
    """

    pred: Tensor
    reconstruction: Tensor
    results: list[Counterfactual]


def explain_with_floor(
    inferer: Any,
    image: Tensor,
    network: Callable[..., Tensor],
    sample_ids: Sequence[Hashable] | None = None,
    *,
    target: Target | None = None,
    source: Target | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    floor: Floor = "source",
) -> SeededExplanation:
    """Run a method with several seeds, and once more per seed for its reconstruction floor.

    The floor uses as many passes as the counterfactual of the same image and seed. An image already in the target class
    has neither counterfactual nor floor: both are the image.

    Args:
        inferer: a method from ``medcf.inferers``; copied, not modified.
        image: images (B, C, *spatial) in [-1, 1].
        network: the denoising network.
        sample_ids: one identity per image, see the inferer.
        target: target class; None uses the inferer's.
        source: class of the images, for ``floor="source"``; None uses the classifier's prediction.
        seeds: seeds of the noise, at least one.
        floor: "source" runs the method toward the images' own class; "unguided" switches class guidance off and changes
            nothing else (guided methods only).

    Returns:
        Counterfactuals and floors for all seeds, for `medcf.transforms.DifferenceMap`.

    Raises:
        ValueError: if there is no seed, the floor is unknown, or the method does not support it.
    """
    if not seeds:
        raise ValueError("seeds is empty: give at least one.")
    check_choice("floor", floor, Floor)
    if floor == "unguided" and not hasattr(inferer, "classifier_scales"):
        raise ValueError(f"{type(inferer).__name__} has no classifier guidance to switch off: use floor='source'.")
    if floor == "source" and "run_unchanged" not in inspect.signature(inferer.explain).parameters:
        raise ValueError(
            f"{type(inferer).__name__} returns images of the target class without running, so it has no floor for the "
            "own class: use floor='unguided', or a method whose explain takes run_unchanged."
        )
    if floor == "source" and source is None:
        with torch.no_grad(), frozen(inferer.classifier):
            source = inferer.classifier(image).argmax(1)
    results, floors = [], []
    for seed in seeds:
        method = copy.copy(inferer)
        method.seed = seed
        result = method.explain(image, network, sample_ids, target)
        results.append(result)
        method = copy.copy(method)
        method.num_iterations = max(int(result.iterations.max()), 1)
        method.confidence_threshold = None
        if floor == "unguided":
            method.classifier_scales = (0.0,)
            again = method.explain(image, network, sample_ids, target)
        else:
            again = method.explain(image, network, sample_ids, source, run_unchanged=True)
        floors.append(again.trajectory[torch.arange(len(image)), result.iterations.cpu()])
    pred = torch.stack([result.image.as_subclass(Tensor) for result in results])
    return SeededExplanation(pred, torch.stack([each.as_subclass(Tensor) for each in floors]), results)
