# SPDX-License-Identifier: Apache-2.0
"""One training of a classifier, and what it says of the other site's images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandFlipd, RandRotated
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score
from torch import Tensor, nn

from benchmarks.fulora.images import Images

__all__ = ["Recipe", "scores", "train"]

#: The paper's augmentation: rotation by up to 25 degrees, horizontal flips of a half, vertical ones of a tenth.
AUGMENTATION = Compose(
    [
        RandRotated(keys="image", range_x=np.deg2rad(25), prob=1.0, padding_mode="zeros", keep_size=True),
        RandFlipd(keys="image", spatial_axis=1, prob=0.5),
        RandFlipd(keys="image", spatial_axis=0, prob=0.1),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """How classifiers are trained.

    Attributes:
        epochs: passes over the images; 20 in the paper.
        batch_size: 24 in the paper.
        learning_rate: of SGD with momentum 0.9; 0.001 in the paper, from ImageNet's weights.
        device: device of the training.
        threads: torch threads on a CPU.
    """

    epochs: int = 20
    batch_size: int = 24
    learning_rate: float = 0.001
    device: str = "cpu"
    threads: int = 1

    def steps(self, count: int) -> int:
        """Number of gradient steps for so many images."""
        return self.epochs * -(-count // self.batch_size)


def train(network: nn.Module, images: Images, steps: int, recipe: Recipe, *, augmented: bool, seed: int) -> nn.Module:
    """Train a classifier for a number of gradient steps, whatever the number of images.

    Args:
        network: with its first weights.
        images: the training set.
        steps: gradient steps.
        recipe: optimizer and batches.
        augmented: whether images are rotated and flipped.
        seed: of order and augmentation.
    """
    torch.manual_seed(seed)
    AUGMENTATION.set_random_state(seed)
    items = [{"image": image, "label": label} for image, label in zip(images.image, images.label, strict=True)]
    order = torch.Generator().manual_seed(seed)
    dataset = Dataset(items, AUGMENTATION if augmented else None)
    loader = DataLoader(dataset, batch_size=recipe.batch_size, shuffle=True, generator=order, drop_last=True)
    network = network.to(recipe.device)
    if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules()):
        network = network.to(memory_format=torch.channels_last)  # depthwise convolutions take half the time on a CPU
    trainer = SupervisedTrainer(
        device=torch.device(recipe.device),
        max_epochs=1,
        epoch_length=steps,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=0.9),
        loss_function=nn.CrossEntropyLoss(),
        decollate=False,
    )
    trainer.logger.setLevel("WARNING")
    trainer.run()
    return network.eval()


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor, device: str = "cpu") -> Tensor:
    """Return the probabilities (N, K) of images (N, 1, H, W)."""
    parts = [network(part.to(device)).float().softmax(1).cpu() for part in images.split(64)]
    return torch.cat(parts)


def scores(predicted: Tensor, label: Tensor) -> dict[str, float]:
    """Score probabilities as the paper does: macro averages over the classes that the test set has.

    Args:
        predicted: probabilities (N, K).
        label: true classes (N,); a prediction of a class that the set has not, such as "other", is an error.

    Returns:
        ``accuracy``, ``precision``, ``recall``, ``f``, and ``auc``, the mean of each present class against the rest.
    """
    truth, found = label.numpy(), predicted.argmax(1).numpy()
    present = sorted(set(truth.tolist()))
    options: dict[str, Any] = {"labels": present, "average": "macro", "zero_division": 0}
    precision, recall, f, _ = precision_recall_fscore_support(truth, found, **options)
    areas = [roc_auc_score(truth == one, predicted[:, one].numpy()) for one in present]
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "precision": float(precision),
        "recall": float(recall),
        "f": float(f),
        "auc": float(np.mean(areas)),
    }
