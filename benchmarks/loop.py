# SPDX-License-Identifier: Apache-2.0
"""The cost of Diff-ICE's loop on top of its networks.

``python -m benchmarks.loop`` times one pass of the demo bundle against the same calls of the denoiser, of the
classifier with its perceptual layer (forward and backward), of the classifier alone (forward) and of the segmenter that
finds the subject, on the same inputs, in the same process, in turn. Everything else counts as the loop's: schedule,
noise, loss, guidance, bookkeeping. The goal is a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from benchmarks.timing import interleaved, median_ratio
from medcf.bundle import bundle_folder
from medcf.phantoms import PhantomDataset


@dataclass
class Calls:
    """The inputs with which one pass called its networks."""

    denoiser: list[tuple[Tensor, dict[str, Tensor]]] = field(default_factory=list)
    guidance: list[Tensor] = field(default_factory=list)
    classifier: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    segmenter: list[Tensor] = field(default_factory=list)


def load(device: str, steps: int, strength: float, batch: int) -> tuple[Any, nn.Module, Tensor]:
    """Build the demo's method for one pass at one scale, its denoiser and a batch of phantoms.

    Args:
        device: where to compute.
        steps: kept steps of the schedule.
        strength: share of them that the pass runs.
        batch: number of images.
    """
    parser = ConfigParser()
    root = bundle_folder("diffice")
    parser.read_config(str(root / "configs" / "inference.json"))
    parser["bundle_root"] = str(root)
    settings = {"num_inference_steps": steps, "strength": strength, "num_iterations": 1, "classifier_scales": [30]}
    parser.update({f"shared_options#{name}": value for name, value in settings.items()})
    parser.update({"shared_options#confidence_threshold": None, "progress": False, "device": device})
    phantoms = PhantomDataset(split="demo", count=4 * batch + 16, progress=False)
    images = torch.stack([phantoms[index]["image"] for index in range(len(phantoms))]).to(device)
    inferer, network = parser.get_parsed_content("inferer"), parser.get_parsed_content("network")
    with torch.no_grad():
        others = images[inferer.classifier(images).argmax(1) != inferer.target][:batch]
    if len(others) < batch:
        raise ValueError(f"Only {len(others)} of {len(images)} phantoms are not of the target class; lower --batch.")
    return inferer, network, others


def record(inferer: Any, network: nn.Module, images: Tensor) -> Calls:
    """Run the pass once and keep what its networks were called with."""
    calls, classifier, segmenter = Calls(), inferer.classifier, inferer.segmenter
    inside_features: list[bool] = []

    def denoiser_called(_module: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        calls.denoiser.append((positional[0].detach().clone(), dict(named)))

    def classifier_called(_module: nn.Module, positional: tuple[Tensor, ...]) -> None:
        if inside_features:  # the perceptual network's own forward calls the classifier and stops it early
            inside_features.clear()
            return
        kept = calls.guidance if positional[0].requires_grad else calls.classifier
        kept.append(positional[0].detach().clone())

    def features_called(_module: nn.Module, positional: tuple[Tensor, ...]) -> None:
        inside_features.append(True)
        calls.features.append(positional[0].detach().clone())

    def segment(image: Tensor) -> Tensor:  # not a hook: the classifier calls the same network in its forward
        calls.segmenter.append(image.detach().clone())
        return segmenter(image)

    with ExitStack() as stack:
        inferer.segmenter = segment
        stack.callback(setattr, inferer, "segmenter", segmenter)
        for handle in (
            network.register_forward_pre_hook(denoiser_called, with_kwargs=True),
            classifier.register_forward_pre_hook(classifier_called),
            inferer.perceptual.register_forward_pre_hook(features_called),
        ):
            stack.callback(handle.remove)
        inferer.explain(images, network)
    return calls


def replay(inferer: Any, network: nn.Module, calls: Calls) -> dict[str, Callable[[], None]]:
    """Return functions that make the recorded calls and nothing else."""
    classifier, perceptual = inferer.classifier, inferer.perceptual
    with torch.no_grad():
        features, logits = perceptual.with_output(calls.guidance[0])
    weights = [*(torch.ones_like(feature) for feature in features), torch.ones_like(logits)]
    points = [image.requires_grad_() for image in calls.guidance]

    @torch.no_grad()
    def denoiser() -> None:
        for sample, named in calls.denoiser:
            network(sample, **named)

    def guidance() -> None:
        for point in points:
            found, output = perceptual.with_output(point)
            torch.autograd.grad([*found, output], point, weights)

    @torch.no_grad()
    def judgement() -> None:
        for image in calls.classifier:
            classifier(image)
        for image in calls.features:
            perceptual(image)

    @torch.no_grad()
    def subject() -> None:
        for image in calls.segmenter:
            inferer.segmenter(image)

    guided = "classifier and features, forward and backward"
    return {"denoiser": denoiser, guided: guidance, "judgement": judgement, "subject": subject}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the pass and its networks.

    Args:
        options: device, batch, steps, strength, repeats and threads.

    Returns:
        Median seconds of each part, of their ``sum`` and of the ``loop``, numbers of calls, and the ``ratio``.
    """
    torch.set_num_threads(options.threads)
    inferer, network, images = load(options.device, options.steps, options.strength, options.batch)
    calls = record(inferer, network, images)
    parts = replay(inferer, network, calls)
    seconds = interleaved({**parts, "loop": lambda: inferer.explain(images, network)}, options.repeats, options.device)
    total = [sum(values) for values in zip(*(seconds[name] for name in parts), strict=True)]
    judged = len(calls.classifier) + len(calls.features)
    counts = [len(calls.denoiser), len(calls.guidance), judged, len(calls.segmenter)]
    return {
        "parts": {name: statistics.median(seconds[name]) for name in parts},
        "calls": dict(zip(parts, counts, strict=True)),
        "sum": statistics.median(total),
        "loop": statistics.median(seconds["loop"]),
        "ratio": median_ratio(seconds["loop"], total),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="kept steps of the schedule")
    parser.add_argument("--strength", type=float, default=0.1, help="fraction of the steps that the pass runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU; with one, processor time is measured")
    options = parser.parse_args()
    result = measure(options)
    sys.stdout.write("| calls of one pass | number | seconds |\n|---|---|---|\n")
    for name, seconds in result["parts"].items():
        sys.stdout.write(f"| {name} | {result['calls'][name]} | {seconds:.3f} |\n")
    sys.stdout.write(f"| sum of the networks | | {result['sum']:.3f} |\n| the pass | | {result['loop']:.3f} |\n")
    sys.stdout.write(f"\nThe pass takes {result['ratio']:.3f} times its networks (goal: at most 1.05).\n")


if __name__ == "__main__":
    main()
