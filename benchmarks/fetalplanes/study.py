# SPDX-License-Identifier: Apache-2.0
"""Trainings of classifiers in regimes, each kept when it is done; what both studies share."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandRotated,
    RandScaleIntensityd,
    RandZoomd,
    ScaleIntensityRanged,
    ToTensord,
)
from torch import nn

from benchmarks.fulora.images import Images
from medcf.evaluation.classification import Predictions, predict
from medcf.networks import SonoNet
from medcf.networks.classifiers import CLASSIFIERS, create_classifier
from medcf.runtime.atomic import write_json
from medcf.training.regimes import SourcedDataset, StageHandler, find_regime, regime_sampler

__all__ = ["NETWORKS", "Arm", "Recipe", "Result", "Sets", "Study", "augmentation", "subset"]

logger = logging.getLogger(__name__)

NUM_CLASSES = 6
SMALL = "SonoNet-16"
NETWORKS = (SMALL, *CLASSIFIERS)


@dataclass(frozen=True)
class Arm:
    """What a classifier is trained on.

    Attributes:
        label: how it reads.
        regime: key of `medcf.training.regimes.REGIMES`.
        images: key of a synthetic set; None for regimes without one.
    """

    label: str
    regime: str
    images: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How classifiers are trained: for so many steps, whatever the regime.

    Attributes:
        iterations: gradient steps; in the paper 200 epochs a stage.
        batch_size: 32 in the paper.
        learning_rate: of Adam; 1e-4 in the paper.
        device: device of the training.
        threads: torch threads on a CPU.
    """

    iterations: int = 500
    batch_size: int = 32
    learning_rate: float = 2e-3
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Sets:
    """Images of a study.

    Attributes:
        train: real images.
        val: real images that no classifier is trained on; ensembles learn from them.
        test: real images of yet other subjects.
        synthetic: sets by name.
    """

    train: Images
    val: Images
    test: Images
    synthetic: Mapping[str, Images]


@dataclass(frozen=True, eq=False)
class Result:
    """What a trained classifier says of the validation and the test set."""

    network: str
    arm: str
    seed: int
    val: Predictions
    test: Predictions


@dataclass(frozen=True, eq=False)
class Study:
    """Trainings on the same real images, tested on the same images.

    Attributes:
        arms: by name.
        sets: the images.
        recipe: how classifiers are trained.
        work: folder of what is done; a training with other images or another recipe is done again.
    """

    arms: Mapping[str, Arm]
    sets: Sets
    recipe: Recipe
    work: Path

    def run(self, networks: Sequence[str], arms: Sequence[str], seeds: int, processes: int = 1) -> list[Result]:
        """Train every network on every arm with every seed.

        Args:
            networks: of ``NETWORKS``.
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
        arm = self.arms[key]
        synthetic = None if arm.images is None else self.sets.synthetic[arm.images]
        digests = [one.digest for one in (self.sets.train, self.sets.val, self.sets.test, synthetic) if one is not None]
        question = {"recipe": asdict(self.recipe), "regime": arm.regime, "images": digests}
        folder = self.work / f"{network.replace('/', '-')}_{key}_{seed}"
        asked = folder / "question.json"
        if not asked.is_file() or json.loads(asked.read_text(encoding="utf-8")) != question:
            torch.set_num_threads(self.recipe.threads)
            torch.manual_seed(seed)
            made = self._train(_create(network, self.sets.train.image.shape[-1]), arm.regime, synthetic, seed)
            for name in ("val", "test"):
                predict(made, Items(getattr(self.sets, name))).save(folder / f"{name}.npz")
            write_json(asked, question)
            logger.info("%s, %s, seed %d: trained for %d steps", network, key, seed, self.recipe.iterations)
        return Result(network, key, seed, *(Predictions.load(folder / f"{name}.npz") for name in ("val", "test")))

    def _train(self, network: nn.Module, regime: str, synthetic: Images | None, seed: int) -> nn.Module:
        recipe, stages, augment = self.recipe, find_regime(regime), augmentation()
        augment.set_random_state(seed)
        made = None if synthetic is None else Items(synthetic)
        dataset = SourcedDataset(Items(self.sets.train), made, augment)
        sampler = regime_sampler(dataset, stages, recipe.iterations, recipe.batch_size, recipe.iterations, seed)
        network = network.to(recipe.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
        trainer = SupervisedTrainer(
            device=torch.device(recipe.device),
            max_epochs=1,
            epoch_length=recipe.iterations,
            train_data_loader=DataLoader(dataset, batch_size=recipe.batch_size, sampler=sampler, drop_last=True),
            network=network,
            optimizer=optimizer,
            loss_function=nn.CrossEntropyLoss(),
            train_handlers=[StageHandler(network, optimizer, stages, recipe.iterations)],
            decollate=False,
        )
        trainer.logger.setLevel("WARNING")
        trainer.run()
        return network


class Items(list):
    """Images as a list of dictionaries, for MONAI's loaders."""

    def __init__(self, images: Images) -> None:
        super().__init__(
            {"image": image, "label": label} for image, label in zip(images.image, images.label, strict=True)
        )
        self.digest = images.digest


def augmentation() -> Compose:
    """Return the paper's augmentation: rotation by up to 30 degrees, flips, clipping, noise and crops."""
    every: dict[str, Any] = {"keys": "image"}
    return Compose(
        [
            RandRotated(**every, range_x=np.deg2rad(30), prob=1.0, padding_mode="zeros"),
            RandFlipd(**every, spatial_axis=1, prob=0.5),
            RandFlipd(**every, spatial_axis=0, prob=0.5),
            RandZoomd(**every, min_zoom=1.0, max_zoom=1.3, prob=0.5, padding_mode="constant"),
            RandScaleIntensityd(**every, factors=(0.0, 0.4), prob=0.5),
            RandGaussianNoised(**every, std=0.1, sample_std=True, prob=0.5),
            ScaleIntensityRanged(**every, a_min=-1, a_max=1, b_min=-1, b_max=1, clip=True),
            ToTensord(**every, track_meta=False),
        ]
    )


def subset(images: Images, counts: int | Sequence[int]) -> Images:
    """Return the first so many images of every class, or of each class its own number; all where there are fewer."""
    each = [counts] * NUM_CLASSES if isinstance(counts, int) else counts
    parts = [torch.nonzero(images.label == one).flatten()[:count] for one, count in enumerate(each)]
    chosen = torch.cat(parts)
    return Images(images.image[chosen], images.label[chosen])


def _create(name: str, size: int) -> nn.Module:
    if name == SMALL:
        return SonoNet(in_channels=1, num_classes=NUM_CLASSES, features=16, max_features=64)
    return create_classifier(name, NUM_CLASSES, size)
