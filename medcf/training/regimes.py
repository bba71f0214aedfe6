# SPDX-License-Identifier: Apache-2.0
"""Regimes: on which images a classifier is trained, in which order, and which of its layers.

Source: Tian et al., "Enhancing Fetal Plane Classification Accuracy with Data Augmentation Using Diffusion Models",
arXiv 2501.15248, sections 3.5 and 5.3. There a regime with two stages takes twice as many gradient steps; here every
regime takes the same number, so that what is compared is the images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from medcf.data.matched import matched
from medcf.networks.classifiers import last_layer
from medcf.training.sampler import PhasedSampler

__all__ = ["REGIMES", "SourcedDataset", "Stage", "StageHandler", "find_regime", "iterations_of", "regime_sampler"]

Source = Literal["real", "traditional", "synthetic"]


@dataclass(frozen=True)
class Stage:
    """Part of a training.

    Attributes:
        sources: kinds of images, shuffled together; "traditional" are real images, augmented.
        share: share of the gradient steps.
        last_layer: train the last layer alone; the others keep what the stage before taught them.
    """

    sources: tuple[Source, ...]
    share: float = 1.0
    last_layer: bool = False


_FINE_TUNED = Stage(("real",), 0.5)
#: "final" is the paper's best one. Its section 5.3.3 compares "last_layer" with that.
REGIMES: dict[str, tuple[Stage, ...]] = {
    "real": (Stage(("real",)),),
    "traditional": (Stage(("traditional",)),),
    "synthetic": (Stage(("synthetic",)),),
    "mixed": (Stage(("real", "synthetic")),),
    "pretrained": (Stage(("synthetic",), 0.5), _FINE_TUNED),
    "pretrained_traditional": (Stage(("traditional",), 0.5), _FINE_TUNED),
    "final": (Stage(("traditional", "synthetic"), 0.5), _FINE_TUNED),
    "last_layer": (Stage(("traditional", "synthetic"), 0.5), Stage(("real",), 0.5, last_layer=True)),
}


class SourcedDataset(Dataset):
    """Real images, the same ones augmented, and synthetic ones, one after another, each with its source.

    Args:
        real: items with ``image`` (C, *spatial) and ``label``.
        store: synthetic images of the same classes, a `medcf.data.SyntheticStore` or a dataset of such items; None if
            the regime needs none.
        augmentation: random transform of a dictionary, for the traditional images, of which there are as many as
            synthetic ones, but not fewer than real ones; None leaves them out.

    Attributes:
        sources: source of each item.
        transform: the augmentation, for `medcf.training.sampler.ReproducibleRandomness`.
        digest: what tells these images from others.
    """

    def __init__(
        self,
        real: Any,
        store: Any = None,
        augmentation: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.real, self.store, self.transform = real, store, augmentation
        synthetic = 0 if store is None else len(store)
        traditional = 0 if augmentation is None else max(len(real), synthetic)
        counts = {"real": len(real), "traditional": traditional, "synthetic": synthetic}
        self.sources = [source for source, count in counts.items() for _ in range(count)]
        self.first = len(real) + traditional  # of the synthetic ones
        self._like = real[0]["image"]
        self.class_names = getattr(real, "class_names", None)
        known = [getattr(real, "digest", None), getattr(store, "header", getattr(store, "digest", None))]
        self.digest = hashlib.sha256(json.dumps([*known, counts], default=str).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of items of all sources."""
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` and ``label``."""
        source = self.sources[index]
        if source == "synthetic":
            made = self.store[index - self.first]
            return {"image": matched(made["image"], self._like, (-1.0, 1.0)), "label": made["label"]}
        found = self.real[index % len(self.real)]
        item = {"image": found["image"], "label": found["label"]}
        if source == "traditional" and self.transform is not None:
            item = self.transform(item)  # MONAI's transforms add keys, and a batch needs the same ones everywhere
        return {"image": item["image"], "label": item["label"]}


def find_regime(name: str) -> tuple[Stage, ...]:
    """Return the stages of a regime.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in REGIMES:
        raise ValueError(f"regime={name!r}: choose one of {', '.join(REGIMES)}.")
    return REGIMES[name]


def iterations_of(stages: Sequence[Stage], iterations: int) -> list[int]:
    """Return the number of gradient steps of each stage; they sum up to ``iterations``.

    Example:
        >>> iterations_of(REGIMES["pretrained"], 101)
        [50, 51]
    """
    total = sum(stage.share for stage in stages)
    ends = [round(iterations * sum(stage.share for stage in stages[: n + 1]) / total) for n in range(len(stages))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def regime_sampler(
    dataset: SourcedDataset, stages: Sequence[Stage], iterations: int, batch_size: int, epoch_length: int, seed: int = 0
) -> PhasedSampler:
    """Return the order of a regime's images.

    Args:
        dataset: the images.
        stages: of ``REGIMES``, or others.
        iterations: gradient steps of the whole training.
        batch_size: images per step.
        epoch_length: steps per epoch.
        seed: of the order.

    Raises:
        ValueError: if the dataset lacks a source, or there are fewer steps than stages.
    """
    if missing := {source for stage in stages for source in stage.sources} - set(dataset.sources):
        raise ValueError(
            f"The regime needs {' and '.join(sorted(missing))} images, and there are none: give a store of synthetic "
            "images, or an augmentation."
        )
    phases = [(stage.sources, steps) for stage, steps in zip(stages, iterations_of(stages, iterations), strict=True)]
    return PhasedSampler(dataset, dataset.sources, phases, batch_size, epoch_length, seed)


class StageHandler:
    """Begins each stage of a training as a training of its own: a fresh optimizer, and the layers that it trains.

    Args:
        network: the classifier.
        optimizer: its state is cleared when a stage begins.
        stages: of the regime.
        iterations: gradient steps of the whole training.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, stages: Sequence[Stage], iterations: int) -> None:
        self.network, self.optimizer, self.stages = network, optimizer, list(stages)
        steps = iterations_of(stages, iterations)
        self.begins = [1 + sum(steps[:number]) for number in range(len(steps))]
        self.head = last_layer(network)
        self._hook: Any = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set up the stage to which the iteration belongs; a resumed training may begin within one."""
        iteration = engine.state.iteration
        if iteration in self.begins[1:]:
            self.optimizer.state.clear()
        stage = self.stages[sum(begin <= iteration for begin in self.begins) - 1]
        frozen = self._hook is not None
        if stage.last_layer == frozen:
            return
        for parameter in self.network.parameters():
            parameter.requires_grad_(not stage.last_layer)
        for parameter in self.head.parameters():
            parameter.requires_grad_(True)
        if stage.last_layer:
            self._hook = self.network.register_forward_pre_hook(self._freeze)
        else:
            self._hook = self._hook.remove()

    def _freeze(self, network: nn.Module, _: Any) -> None:
        """Keep the statistics of normalizations, too: MONAI's trainer sets the training mode at every step."""
        if network.training:
            network.eval()
            self.head.train()
