# SPDX-License-Identifier: Apache-2.0
"""Evaluation of counterfactuals of the validation subjects: there is no ground truth, only several weak judges."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.metrics import compute_dice
from monai.transforms import Compose, LoadImaged
from torch import Tensor, nn

from benchmarks.counterfactual.task import Recipe, apply
from benchmarks.fetal_us.statistics import balanced_accuracy, bootstrap, chance_of_reidentification, share
from medcf.data import StudyReader
from medcf.inferers.counterfactual import Counterfactual
from medcf.metrics import ReIdentification, flip_survival
from medcf.networks import SonoNet
from medcf.runtime.performance import autocast
from medcf.runtime.weights import load_weights
from medcf.training.datasets import own_dataset
from medcf.transforms import RemoveOverlaysd, ToGridd

__all__ = ["Images", "evaluate", "explain", "judge_accuracy", "load_images", "measure", "open_bundle"]

logger = logging.getLogger(__name__)

TARGET = 1
RANK = 3
JUDGE_FEATURES = 12


@dataclass(frozen=True)
class Images:
    """Images on the network's grid.

    Attributes:
        image: (B, 1, H, W) in [-1, 1].
        label: (B,).
        subject: whose image it is.
        case: its name, which also seeds its noise.
    """

    image: Tensor
    label: Tensor
    subject: list[str]
    case: list[str]

    def where(self, mask: Tensor) -> Images:
        """Keep the images (B,) that are true."""
        kept = mask.nonzero()[:, 0].tolist()
        return Images(self.image[mask], self.label[mask], [self.subject[i] for i in kept], [self.case[i] for i in kept])


def load_images(table: Path, split: str, size: Sequence[int], spacing: float) -> Images:
    """Read the images of a split as the trainings and the bundle's inference do."""
    load = LoadImaged("image", reader=StudyReader(), expanduser=False)
    prepare = Compose([load, RemoveOverlaysd("image"), ToGridd("image", size=size, spacing=spacing)])
    dataset = own_dataset(table, split, prepare)
    samples = [dataset[index] for index in range(len(dataset))]
    return Images(
        torch.stack([sample["image"] for sample in samples]),
        torch.stack([sample["label"] for sample in samples]),
        [sample["subject"] for sample in samples],
        [sample["case"] for sample in samples],
    )


def open_bundle(models: Path, overrides: Mapping[str, Any] | None = None) -> ConfigParser:
    """Open the bundle's ``inference.json`` on weights trained with two segments instead of five.

    Args:
        models: folder with ``model.pt``, ``segmenter.pt``, ``classifier.pt`` and ``novelty.pt``.
        overrides: further ids of the config, for example ``{"inferer#strength": 0.4}``.

    Returns:
        The parser; ``get_parsed_content`` gives ``inferer``, ``network``, ``classifier``, ``segmenter``, ``novelty``.
    """
    weights = {
        f"weights#{name}": str(models / f"{name}.pt") for name in ("model", "segmenter", "classifier", "novelty")
    }
    sizes = {"segmenter_def#out_channels": 2, "predictor_def#in_channels": 3}
    return Recipe("diffice", ("inference.json",), {**weights, **sizes}).open(overrides)


def judge_accuracy(classifier: nn.Module, images: Images) -> dict[str, Any]:
    """Balanced accuracy of a classifier with its interval over subjects, and the counts behind it."""
    predicted = apply(classifier, images.image).argmax(1).numpy()
    truth = images.label.numpy()
    return {
        "balanced_accuracy": balanced_accuracy(truth, predicted),
        "interval": bootstrap(balanced_accuracy, [truth, predicted], images.subject),
        "images": len(truth),
        "subjects": len(set(images.subject)),
        "recalled": {str(label): [int((predicted[truth == label] == label).sum()), int((truth == label).sum())]
                     for label in np.unique(truth)},
    }  # fmt: skip


def explain(
    inferer: Any, network: nn.Module, images: Images, batch_size: int = 8, amp: bool | Literal["auto"] = "auto"
) -> list[Counterfactual]:
    """Compute the counterfactuals batch by batch, under autocast as the bundle's own inference."""
    results = []
    for start in range(0, len(images.case), batch_size):
        part = slice(start, start + batch_size)
        with autocast("cpu", enabled=amp):
            results.append(inferer.explain(images.image[part], network, sample_ids=images.case[part]))
        logger.info("%d of %d explained", min(start + batch_size, len(images.case)), len(images.case))
    return results


@torch.no_grad()
def measure(
    images: Images,
    results: Sequence[Counterfactual],
    classifier: nn.Module,
    judge: nn.Module,
    segmenter: nn.Module,
) -> dict[str, Any]:
    """Measure counterfactuals without a truth.

    Args:
        images: the inputs that ``results`` belong to, in the same order.
        results: one for each batch.
        classifier: f, which guided them; has ``features``.
        judge: another classifier, which did not; has ``features``.
        segmenter: images to logits; label 1 is the head.

    Returns:
        The figures as JSON values. Inputs that f already calls the target class do not enter.
    """
    unchanged = torch.cat([result.unchanged for result in results])
    entered = images.where(~unchanged)
    figures: dict[str, Any] = {"inputs": len(unchanged), "already_target": int(unchanged.sum())}
    if not entered.case:
        return figures
    pred = torch.cat([result.image for result in results])[~unchanged].as_subclass(Tensor)
    flipped = torch.cat([result.flipped for result in results])[~unchanged]
    confidences = torch.cat([result.confidences for result in results])[~unchanged]
    figures["flipped"] = share(flipped.tolist(), entered.subject)
    figures["confidence_per_iterate"] = confidences.mean(0).tolist()
    valid = entered.where(flipped)
    kept = flip_survival(classifier, pred[flipped], TARGET) if valid.case else {}
    figures["survival"] = {name: share(hits.tolist(), valid.subject) for name, hits in kept.items()}
    before = apply(judge, entered.image).softmax(1)[:, TARGET]
    after = apply(judge, pred).softmax(1)[:, TARGET]
    figures["judge"] = {
        "inputs_called_target": share((before > 0.5).tolist(), entered.subject),
        "flips_called_target": share((after[flipped] > 0.5).tolist(), valid.subject),
        "raised": share((after > before).tolist(), entered.subject),
        "mean_probability": [float(before.mean()), float(after.mean())],
    }
    figures["identity"] = {
        name: _identity(network, entered, pred) for name, network in (("classifier", classifier), ("judge", judge))
    }
    heads = [apply(segmenter, batch).argmax(1, keepdim=True) == 1 for batch in (entered.image, pred)]
    dice = compute_dice(heads[1].float(), heads[0].float(), ignore_empty=False)[:, 0]
    figures["head_dice"] = {"mean": float(dice.mean()), "lowest": float(dice.min())}
    figures["grid_difference"] = float((pred - entered.image).abs().mean())
    figures["evaluations_per_case"] = float(
        torch.cat([result.num_function_evaluations for result in results])[~unchanged].float().mean()
    )
    return figures


def _identity(network: nn.Module, images: Images, pred: Tensor) -> dict[str, float]:
    """Rank-3 re-identification and cosine by the features of ``network``, with chance and stranger levels."""
    subjects = sorted(set(images.subject))
    index = torch.tensor([subjects.index(name) for name in images.subject])
    metric = ReIdentification(RANK)
    features = apply(network.features, images.image)
    metric(apply(network.features, pred), features, subject=index)
    hit = metric.aggregate()
    unit = nn.functional.normalize(features, dim=1)
    strangers = (unit @ unit.T)[index[:, None] != index[None]]
    return {
        f"rank_{RANK}": hit,
        "chance": chance_of_reidentification(images.subject, RANK),
        "cosine": metric.mean_similarity,
        "cosine_of_strangers": float(strangers.mean()) if strangers.numel() else float("nan"),
    }


def evaluate(
    tables: Path,
    models: Path,
    *,
    split: str = "val",
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> tuple[dict[str, Any], Images, list[Counterfactual]]:
    """Run the whole evaluation.

    Args:
        tables: folder that ``prepare`` wrote.
        models: folder with the trained weights, ``judge.pt`` among them.
        split: whose images: ``"val"``, or ``"test"`` to choose settings on.
        overrides: ids of ``inference.json`` to change.
        limit: explain only the first so many inputs.

    Returns:
        The figures, and for looking at them the inputs and the results.
    """
    parser = open_bundle(models, overrides)
    network, classifier = parser.get_parsed_content("network"), parser.get_parsed_content("classifier").eval()
    segmenter, inferer = parser.get_parsed_content("segmenter"), parser.get_parsed_content("inferer")
    judge = load_weights(
        SonoNet(1, features=JUDGE_FEATURES, max_features=64), models / "judge.pt", remedy="Train it as the docs say."
    )
    size, spacing = parser.get_parsed_content("spatial_size"), parser.get_parsed_content("spacing")
    images = load_images(tables / "planes.csv", split, size, spacing)
    figures: dict[str, Any] = {
        "split": split,
        "classifier": judge_accuracy(classifier, images),
        "judge": judge_accuracy(judge, images),
    }
    standard = images.where(images.label == TARGET)
    for name, model in (("classifier", classifier), ("judge", judge)):
        figures[name]["mean_probability_of_real_targets"] = float(
            apply(model, standard.image).softmax(1)[:, TARGET].mean()
        )
    inputs = images.where(images.label != TARGET)
    if limit is not None:
        inputs = inputs.where(torch.arange(len(inputs.case)) < limit)
    start = time.perf_counter()
    results = explain(inferer, network, inputs)
    figures["seconds_per_input"] = (time.perf_counter() - start) / len(inputs.case)
    figures["counterfactuals"] = measure(inputs, results, classifier, judge, segmenter)
    inferer = inferer.with_options(classifier_scales=(0.0,))
    figures["without_guidance_by_the_class"] = measure(
        inputs, explain(inferer, network, inputs), classifier, judge, segmenter
    )
    if (models / "novelty.pt").is_file():
        novelty = parser.get_parsed_content("novelty")
        flags = [novelty(batch)["out_of_distribution"] for batch in inputs.image.split(32)]
        figures["out_of_distribution"] = share(torch.cat(flags).tolist(), inputs.subject)
    return figures, inputs, results
