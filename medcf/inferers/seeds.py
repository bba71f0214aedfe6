# SPDX-License-Identifier: Apache-2.0
"""Any method with several seeds: a sample to look at, their mean to measure with, their spread, and their floor.

A counterfactual is a SAMPLE of what the image could be: it flips, and is sharp. Its squared error against the truth has
twice the variance part of the mean's. So the mean over K seeds is a second output, to measure with: it is blurred, and
need not flip.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from medcf.inferers.checks import Target
from medcf.inferers.counterfactual import Counterfactual
from medcf.inferers.method import Method
from medcf.inferers.options import option_of, with_options
from medcf.runtime.choices import check_choice
from medcf.runtime.frozen import frozen

__all__ = ["Seeded", "SeededExplanation", "explain_seeds", "explain_with_floor"]

Floor = Literal["unguided", "source"]

_PIXELS = 2**16


@dataclass(frozen=True)
class Seeded:
    """Counterfactuals of a batch of B images for K seeds.

    Attributes:
        counterfactual: those of the first seed.
        samples: the images of all seeds (K, B, C, *spatial).
        expected: their mean (B, C, *spatial).
        spread: their standard deviation (B, C, *spatial).
        flip_share: fraction of the seeds that flip each image (B,).
        num_function_evaluations: evaluations of the denoising network per image (B,), over all seeds; NaN if unknown.
    """

    counterfactual: Counterfactual
    samples: Tensor
    expected: Tensor
    spread: Tensor
    flip_share: Tensor
    num_function_evaluations: Tensor


def explain_seeds(
    inferer: Any,
    image: Tensor,
    network: Callable[..., Tensor],
    sample_ids: Sequence[Hashable] | None = None,
    target: Target | None = None,
    *,
    seeds: Sequence[int],
    stacked: int | None = None,
) -> Seeded:
    """Run a method with several seeds, as many images and seeds at once as is not slower.

    Args:
        inferer: a method.
        image: images (B, C, *spatial) in [-1, 1].
        network: the denoising network.
        sample_ids: one identity per image.
        target: target class; None uses the method's.
        seeds: K seeds.
        stacked: number of samples that run together; at least one seed of all images does. None takes 8, and on a CPU
            as many as have 65 536 pixels: there more of them saves nothing, and large stacks leave the caches.

    Returns:
        The counterfactuals; each sample equals that of a separate run with its seed.

    Raises:
        ValueError: if there is no seed.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds:
        raise ValueError("seeds is empty: give at least one.")
    if len(seeds) > 1 and option_of(inferer, "seed") is None:
        raise ValueError(f"{type(inferer).__name__} has no seed: its results for several seeds would be the same.")
    if stacked is None:
        stacked = 8 if image.device.type != "cpu" else min(8, _PIXELS // image[0].numel())
    size = max(stacked // len(image), 1) if _is_stackable(inferer, target) else 1
    runs: list[Counterfactual] = []
    for first in range(0, len(seeds), size):
        some = list(seeds[first : first + size])
        if len(some) == 1:
            own = option_of(inferer, "seed", some[0]) == some[0]
            method = inferer if own else with_options(inferer, seed=some[0])
            runs.append(method.explain(image, network, sample_ids, target))
            continue
        ids = None if sample_ids is None else [one for _ in some for one in sample_ids]
        images = torch.cat([image.as_subclass(Tensor)] * len(some))
        found = inferer.explain(images, network, ids, target, seeds=[seed for seed in some for _ in range(len(image))])
        runs += [found.rows(slice(start, start + len(image))) for start in range(0, len(images), len(image))]
    samples = torch.stack([run.image.as_subclass(Tensor).float() for run in runs])
    return Seeded(
        counterfactual=runs[0],
        samples=samples,
        expected=samples.mean(0),
        spread=samples.std(0, correction=min(1, len(samples) - 1)),
        flip_share=torch.stack([run.flipped.float() for run in runs]).mean(0),
        num_function_evaluations=torch.stack([run.num_function_evaluations for run in runs]).sum(0),
    )


def _is_stackable(inferer: Any, target: Target | None) -> bool:
    """Return whether nothing that the method is given has one entry per image."""
    if not isinstance(inferer, Method):
        return False
    wanted, region = inferer.target if target is None else target, inferer.options.region
    held = inferer.conditioner.held if inferer.needs_network else ()
    each = [isinstance(region, Tensor) and len(region) > 1, *(one.is_per_sample for one in held)]
    return not any(each) and (isinstance(wanted, int | str) or torch.as_tensor(wanted).ndim == 0)


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
    if floor == "unguided" and option_of(inferer, "classifier_scales") is None:
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
        method = with_options(inferer, seed=seed)
        result = method.explain(image, network, sample_ids, target)
        results.append(result)
        passes: dict[str, Any] = {}
        if option_of(method, "num_iterations", 1) > 1:
            passes = {"num_iterations": max(int(result.iterations.max()), 1), "confidence_threshold": None}
        if floor == "unguided":
            again = with_options(method, **passes, classifier_scales=(0.0,)).explain(image, network, sample_ids, target)
        else:
            again = with_options(method, **passes).explain(image, network, sample_ids, source, run_unchanged=True)
        floors.append(again.trajectory[torch.arange(len(image)), result.iterations.cpu()])
    pred = torch.stack([result.image.as_subclass(Tensor) for result in results])
    return SeededExplanation(pred, torch.stack([each.as_subclass(Tensor) for each in floors]), results)
