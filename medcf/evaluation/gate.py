# SPDX-License-Identifier: Apache-2.0
"""The gate of a diffusion training: is the denoiser good enough to start from noise?

Two measurements. The error of the predicted clean image is compared with that of a linear estimate, which any trained
network should beat. And samples drawn from pure noise for a class should be recognized as that class by classifiers
that had no part in the training.
"""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from torch import Tensor, nn

from medcf.evaluation.gaussian_bound import GaussianBound
from medcf.evaluation.judges import Judge, load_judges
from medcf.evaluation.run import finite
from medcf.evaluation.verdict import denoising_row, report, share_row, verdict
from medcf.networks import Condition, Denoiser
from medcf.runtime.atomic import write_json
from medcf.runtime.performance import accelerate
from medcf.runtime.weights import load_weights
from medcf.sampling import PixelSpace, Space, draw_samples, make_generators, noised
from medcf.schedulers import RespacedScheduler

__all__ = ["Gate", "check_gate", "image_of", "report_gate", "spread_items", "stacked"]

logger = logging.getLogger(__name__)

Figures = dict[str, Any]

#: The largest permitted ratio of the error to the Gaussian bound, by noise level in thousandths of the schedule.
LIMITS: dict[int | str, float] = {50: 1.0, 150: 1.0, 300: 1.0, 450: 1.0, 600: 1.05, 750: 1.02, 850: 1.02, 950: 1.02}


@dataclass
class Gate:
    """Measures a trained denoiser and compares the figures with limits.

    Attributes:
        network: the denoiser; a copy of it gets the weights.
        weights: its weights file; None measures the network as it is.
        scheduler: the sampler, with the noise levels and the ``prediction_type`` of the training.
        training: dataset of the training images, ``image`` (C, *spatial) in [-1, 1], for the Gaussian bound.
        held_out: dataset of the images that are noised and predicted.
        path: JSON file for the figures.
        judges: the classifiers, by name; one whose weights are missing is left out, and the report says so.
        class_names: the classes to sample, in the order of their indices.
        aims: for each class, the smallest permitted share of recognized samples.
        null_class: class index trained as "no class"; the error is that of this branch.
        prompts: for each class a prompt, or several that its samples take in turn, for a network that holds its
            ``text_encoder`` (`medcf.networks.PromptUNet`), whose null is the prompt "". Empty for other networks.
        space: space of the network; errors are those of its samples, judges see decoded images.
        limits: for each noise level, in thousandths of the training schedule, the largest permitted ratio of error to
            bound.
        num_images: number of held-out images, spread evenly over the dataset.
        num_training_images: number of training images, likewise. They are held in memory, 4 bytes per pixel or voxel.
        num_components: number of principal components of the bound; at most one fewer than training images.
        num_samples: samples per class.
        guidance_scale: classifier-free guidance of the samples.
        num_inference_steps: steps of the sampler.
        matched_steps: number of timesteps to which the training was limited, see `ClassConditionalPrepareBatch`; only
            these are used. None for all.
        batch_size: images per network call; samples are twice as many with guidance.
        seed: seed of the noise.
        device: device for the networks.
    """

    network: nn.Module
    weights: str | Path | None
    scheduler: RespacedScheduler
    training: Any
    held_out: Any
    path: str | Path
    judges: Mapping[str, Judge] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    aims: Sequence[float] = ()
    null_class: int | None = None
    prompts: Sequence[str | Sequence[str]] = ()
    space: Space = field(default_factory=PixelSpace)
    limits: Mapping[int | str, float] = field(default_factory=lambda: dict(LIMITS))
    num_images: int = 64
    num_training_images: int = 1000
    num_components: int = 60
    num_samples: int = 32
    guidance_scale: float = 2.0
    num_inference_steps: int = 20
    matched_steps: int | None = None
    batch_size: int = 32
    seed: int = 0
    device: torch.device | str = "cpu"

    def run(self) -> Figures:
        """Measure, print the table and the verdict, and write the figures.

        Returns:
            ``passed``, ``verdict``, ``failures``, ``weak`` and ``skipped`` (sentences, see `medcf.evaluation.verdict`),
            ``denoising`` (one entry per noise level), ``samples`` (per judge, one entry per class), and the numbers of
            images and samples.

        Raises:
            FileNotFoundError: if the denoiser's weights do not exist.
            ValueError: if they do not fit, or there are too few images.
        """
        start = time.perf_counter()
        Path(self.path).unlink(missing_ok=True)  # a verdict on other weights must not stay if this one fails
        network = self._loaded()
        if self.space.range is None:
            self.scheduler.clip_sample = False  # as in `medcf.inferers.Method`
        training = self._encoded(_images(self.training, self.num_training_images))
        bound = GaussianBound.fit(training, self.num_components, self.seed)
        images = _images(self.held_out, self.num_images)
        figures: Figures = {
            "weights": None if self.weights is None else str(self.weights),
            "images": len(images),
            "training_images": bound.num_images,
            "components": len(bound.variances),
            "samples_per_class": self.num_samples,
            "denoising": self._denoising(network, self._encoded(images).to(self.device), bound.to(self.device)),
        }
        figures["samples"], figures["skipped"] = self._samples(network, images[0].to(self.device))
        figures |= verdict(figures, len(self.held_out), self.num_images)
        figures["seconds"] = round(time.perf_counter() - start, 1)
        write_json(Path(self.path), finite(figures))
        sys.stdout.write(report(figures, f"guidance scale {self.guidance_scale:g}, {self._steps} steps"))
        return figures

    @property
    def _steps(self) -> int:
        return self.matched_steps or self.num_inference_steps

    def _loaded(self) -> nn.Module:
        network = copy.deepcopy(self.network)  # the training's own network keeps its weights
        if self.weights is not None:
            load_weights(network, self.weights, remedy="Train it first, or name another file with --export_path FILE.")
        return accelerate(network.eval().to(self.device), channels_last=True)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        """Return images as samples of the space, on the CPU."""
        return torch.cat([self.space.encode(part.to(self.device)).cpu() for part in images.split(self.batch_size)])

    def _clipped(self, sample: Tensor) -> Tensor:
        """Clip a predicted clean sample as the samplers do."""
        return sample if self.space.range is None else sample.clamp(*self.space.range)

    def _timesteps(self) -> dict[int, float]:
        """Map the noise levels to trained timesteps, each with its limit."""
        total = self.scheduler.num_train_timesteps
        self.scheduler.set_timesteps(self.matched_steps or total)
        levels = {int(level) * total / 1000: float(limit) for level, limit in self.limits.items()}
        return {min(self.scheduler.kept, key=lambda t: abs(t - level)): limit for level, limit in levels.items()}

    @torch.no_grad()
    def _denoising(self, network: nn.Module, images: Tensor, bound: GaussianBound) -> list[Figures]:
        """Compare the errors of network and bound for the same noisy images, without a class.

        Both predictions are clipped to the space's range, as the samplers clip them.
        """
        unknown = _has_no_classes(network) and not self.prompts
        denoiser = Denoiser(network, self.scheduler, () if unknown else self._null(network))
        rows = []
        for t, limit in self._timesteps().items():
            errors: dict[str, list[Tensor]] = {"error": [], "bound": []}
            for ids in torch.arange(len(images)).split(self.batch_size):
                clean = images[ids]
                generators = make_generators(self.seed, ids.tolist(), self.device, ("gate", t))
                noisy = noised(self.scheduler, clean, t, generators)
                predictions = {
                    "error": denoiser(noisy, t).original,
                    "bound": bound(noisy, self.scheduler.alpha_bar(t)),
                }
                for name, predicted in predictions.items():
                    squares = (self._clipped(predicted) - clean) ** 2
                    errors[name].append(squares.double().flatten(1).mean(1).cpu())
            network_errors, bound_errors = (torch.cat(each).numpy() for each in errors.values())
            rows.append(denoising_row(t, network_errors, bound_errors, limit))
        return rows

    def _samples(self, network: nn.Module, like: Tensor) -> tuple[dict[str, list[Figures]], list[str]]:
        """Draw samples and let the judges recognize them; also the sentences on what was not measured."""
        judges, skipped = load_judges(self.judges, like)
        if _has_no_classes(network) and not self.prompts:
            judges, skipped = {}, ["The class samples were not checked: the network knows no classes."]
        elif not judges:
            skipped.append("The class samples were not checked: there is no classifier to recognize them.")
        if not judges:
            return {}, skipped
        shape = self._encoded(like[None]).shape[1:]
        found: dict[str, list[Figures]] = {name: [] for name in judges}
        for label, (name, aim) in enumerate(zip(self.class_names, self.aims, strict=True)):
            hits = dict.fromkeys(judges, 0)
            for ids in torch.arange(self.num_samples).split(self.batch_size):
                samples = self._drawn(network, label, ids, shape)
                for judge, recognize in judges.items():
                    hits[judge] += int((recognize(samples) == label).sum())
            for judge, count in hits.items():
                found[judge].append(share_row(name, count, self.num_samples, aim))
        return found, skipped

    @torch.no_grad()
    def _drawn(self, network: nn.Module, label: int, ids: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw the image of one sample of a class per id, from the noise of that id."""
        generators = make_generators(self.seed, ids.tolist(), self.device, ("gate", "samples"))
        denoiser = Denoiser(network, self.scheduler, self._condition(network, label, ids))
        drawn = draw_samples(denoiser, self.scheduler, shape, self._steps, generators)
        return self.space.decode(self._clipped(drawn)).clamp(-1, 1)

    def _condition(self, network: Any, label: int, ids: Tensor) -> Condition:
        """Return the guided condition of a class, with one of its prompts for each sample."""
        null = self._null(network)
        if not self.prompts:
            return Condition(label, null=null, scale=self.guidance_scale)
        own = self.prompts[label]
        choice = [own] if isinstance(own, str) else list(own)
        context = network.text_encoder.embed([choice[i % len(choice)] for i in ids.tolist()])
        return Condition(null.labels, context, null, self.guidance_scale)

    def _null(self, network: Any) -> Condition:
        """Return the condition that was trained in place of the class and of the prompt."""
        return Condition(self.null_class, network.text_encoder.embed([""]) if self.prompts else None)


def check_gate(gate: Gate | Literal[False] | None) -> Figures:
    """Run the gate of a config on weights that exist.

    Args:
        gate: the config's gate; None if it has none, False if the user switched it off.

    Raises:
        ValueError: if there is no gate.
    """
    if not gate:
        raise ValueError("These configs have no gate: only train.json, which trains a diffusion model, has one.")
    return gate.run()


def report_gate(gate: Gate | Literal[False] | None) -> Figures:
    """Run the gate after a training, on the main process; an error is logged, since the training itself succeeded.

    Args:
        gate: the config's gate; None if it has none, False if the user switched it off.

    Returns:
        The figures of `Gate.run`; empty without a gate, after an error and on other processes.
    """
    if not gate or idist.get_rank() > 0:
        return {}
    try:
        return gate.run()
    except Exception:
        logger.exception("The gate could not be measured; the training is complete, and its weights are written.")
        return {}


def _images(dataset: Any, count: int) -> Tensor:
    """Stack up to ``count`` images, spread evenly over a dataset, which may be sorted by class."""
    if len(dataset) == 0 or count < 1:
        raise ValueError("The gate needs at least one training and one held-out image, and counts of at least 1.")
    return torch.stack([image_of(item) for item in spread_items(dataset, count)])


def spread_items(dataset: Any, count: int) -> Iterator[Any]:
    """Read up to ``count`` items, spread evenly over a dataset, which may be sorted by class."""
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int):
        yield dataset[int(index)]


def image_of(item: Mapping[str, Any], key: str = "image") -> Tensor:
    """Return an item's image as a plain float32 tensor."""
    return torch.as_tensor(item[key]).as_subclass(Tensor).float()


def stacked(dataset: Any, limit: int, key: str = "image") -> tuple[Tensor, Tensor]:
    """Return up to ``limit`` images (N, C, *spatial) of a dataset, spread evenly, and labels (N,), -1 where none is."""
    images, labels = [], []
    for item in spread_items(dataset, limit):
        images.append(image_of(item, key))
        labels.append(-1 if item.get("label") is None else int(item["label"]))
    return torch.stack(images), torch.tensor(labels)


def _has_no_classes(network: nn.Module) -> bool:
    return getattr(network, "num_class_embeds", None) is None
