# SPDX-License-Identifier: Apache-2.0
"""Trainings of classifiers on sets of images, each kept when it is done: what the studies have in common."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

from benchmarks.command_line import setting
from benchmarks.fulora.images import Images
from benchmarks.fulora.training import Recipe, probabilities, train
from medcf.networks.classifiers import CLASSIFIERS, create_classifier
from medcf.runtime.atomic import write_json

__all__ = ["Arm", "Result", "Study", "add_options", "trained", "wanted"]

logger = logging.getLogger(__name__)

NUM_CLASSES = 6


@dataclass(frozen=True)
class Arm:
    """What a classifier is trained on.

    Attributes:
        label: how it reads.
        parts: sets of images: "ES", "AF" and names of synthetic sets.
        augmented: whether images are rotated and flipped.
        steps_of: parts whose number of images sets the number of gradient steps; None: its own.
    """

    label: str
    parts: tuple[str, ...]
    augmented: bool = False
    steps_of: tuple[str, ...] | None = None

    @property
    def counted(self) -> tuple[str, ...]:
        """Parts whose number of images sets the number of gradient steps."""
        return self.parts if self.steps_of is None else self.steps_of


@dataclass(frozen=True, eq=False)
class Result:
    """What a trained classifier says of the test set: probabilities (N, K) after a number of gradient steps."""

    network: str
    arm: str
    seed: int
    steps: int
    probabilities: Tensor


@dataclass(frozen=True, eq=False)
class Study:
    """Trainings on the same sets of images, tested on the same images.

    Attributes:
        arms: by name.
        pools: the sets of images that the arms name.
        test: images of the other site.
        recipe: how classifiers are trained.
        work: folder of what is done; a training with other images or another recipe is done again.
        weights: files with first weights, by network.
    """

    arms: Mapping[str, Arm]
    pools: Mapping[str, Images]
    test: Images
    recipe: Recipe
    work: Path
    weights: Mapping[str, str] = field(default_factory=dict)

    def run(self, networks: Sequence[str], arms: Sequence[str], seeds: int, processes: int = 1) -> list[Result]:
        """Train every network on every arm with every seed.

        Args:
            networks: keys of ``CLASSIFIERS``.
            arms: names.
            seeds: their number.
            processes: trainings at a time.
        """
        asked = [(network, arm, seed) for network, seed, arm in product(networks, range(seeds), arms)]
        found = Parallel(n_jobs=processes)(delayed(self.one)(*training) for training in asked)
        order = {arm: place for place, arm in enumerate(arms)}
        return sorted(found, key=lambda result: (networks.index(result.network), order[result.arm], result.seed))

    def one(self, network: str, key: str, seed: int) -> Result:
        """Return one training's result, from the disk if it was done."""
        arm, parts = self.arms[key], [self.pools[part] for part in self.arms[key].parts]
        steps = self.recipe.steps(sum(len(self.pools[part]) for part in arm.counted))
        question = {"recipe": asdict(self.recipe), "arm": asdict(arm), "steps": steps}
        question |= {"images": [images.digest for images in (*parts, self.test)], "weights": self.weights.get(network)}
        file = self.work / f"{network.replace('/', '-')}_{key}_{seed}.json"
        asked = json.loads(json.dumps(question))
        if file.is_file() and (stored := json.loads(file.read_text(encoding="utf-8")))["question"] == asked:
            return Result(network, key, seed, steps, torch.tensor(stored["probabilities"]))
        torch.set_num_threads(self.recipe.threads)
        torch.manual_seed(seed)
        made = create_classifier(network, NUM_CLASSES, self.test.image.shape[-1], self.weights.get(network))
        train(made, sum(parts[1:], start=parts[0]), steps, self.recipe, augmented=arm.augmented, seed=seed)
        found = probabilities(made, self.test.image, self.recipe.device)
        shown = [[round(value, 5) for value in row] for row in found.tolist()]
        write_json(file, {"question": asked, "probabilities": shown})
        logger.info("%s, %s, seed %d: trained for %d steps", network, key, seed, steps)
        return Result(network, key, seed, steps, torch.tensor(shown))


def trained(
    arms: Mapping[str, Arm], pools: Mapping[str, Images], test: Images, options: argparse.Namespace, name: str = ""
) -> list[Result]:
    """Train what the options of `add_options` ask for.

    Args:
        arms: see `Study`.
        pools: see `Study`.
        test: see `Study`.
        options: of the command line.
        name: folder below that of the trainings.
    """
    weights = dict(part.split("=", 1) for part in options.imagenet)
    recipe = Recipe(options.epochs, options.batch_size, options.learning_rate, options.device, options.threads)
    study = Study(arms, pools, test, recipe, options.work / "trainings" / name, weights)
    return study.run(options.networks, options.arms, options.seeds, options.processes)


def wanted(arms: Mapping[str, Arm], keys: Sequence[str]) -> list[str]:
    """Return the parts that arms name."""
    return list(dict.fromkeys(part for key in keys for part in (*arms[key].parts, *arms[key].counted)))


def add_options(parser: argparse.ArgumentParser, arms: Mapping[str, Arm], defaults: Mapping[str, Any]) -> None:
    """Add what every study of classifiers asks for.

    Args:
        parser: gets the options.
        arms: their names may be chosen.
        defaults: ``networks``, ``arms``, ``epochs`` and ``work``.
    """
    parser.add_argument("--networks", nargs="+", choices=CLASSIFIERS, default=defaults["networks"])
    parser.add_argument("--arms", nargs="+", choices=arms, default=defaults["arms"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=defaults["epochs"], help="20 in the paper")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=0.01, help="0.001 in the paper, from ImageNet's weights")
    parser.add_argument("--size", type=int, default=64, help="side of the images; the generator's")
    parser.add_argument("--views", type=int, default=100, help="passes of an adapter's training; 100 in the paper")
    parser.add_argument("--imagenet", nargs="+", default=[], metavar="NETWORK=FILE", help="first weights, by network")
    parser.add_argument("--set", type=setting, action="append", default=[], help="id of fulora's configs: ID=JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--work", type=Path, default=defaults["work"])
