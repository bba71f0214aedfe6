# SPDX-License-Identifier: Apache-2.0
"""A word that no caption has: "cardiomegaly". Does the heart grow?"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import apply
from benchmarks.valdmd.localized import share
from benchmarks.valdmd.rows import CARDIOMEGALY, CONTROLS, induce
from benchmarks.valdmd.sections import Section, summary
from benchmarks.valdmd.task import HEART, ChestTask, labeled_chests
from medcf.metrics import FrechetDistance

__all__ = ["HEARTS", "heart_ratio", "zero_shot_section"]

logger = logging.getLogger(__name__)

_THEME = "enlarged heart?"
HEARTS = (
    Measure("heart", "of all change, at the heart", _THEME, "↑", 3),
    Measure("chance", "heart's share of the picture", _THEME, "", 3),
    Measure("ratio", "cardiothoracic ratio, by s", _THEME, "↑", 3),
    Measure("gain", "minus the input's", _THEME, "↑", 3),
    Measure("grown", "hearts that grew by 0.05", _THEME, "↑", 0, True),
    Measure("distance", "Fréchet distance (f) to large hearts", _THEME, "↓", 2),
    Measure("distance_small", "to the other hearts", _THEME, "", 2),
    Measure("normal", "the judge still says normal", _THEME, "", 0, True),
)
GROWN, UPPER = 0.05, 0.75  # of the ratio, and the quantile from which a normal heart counts as large


def heart_ratio(labels: Tensor) -> Tensor:
    """Return the cardiothoracic ratio (B,): the largest width of the heart over that of the lungs, in columns.

    Args:
        labels: label maps (B, 1, H, W): 1 and 2 the lungs, 3 the heart. NaN without lungs.
    """

    def width(mask: Tensor) -> Tensor:
        found = mask[:, 0].any(1)
        columns = torch.arange(found.shape[1])
        last = torch.where(found, columns, -1).amax(1)
        first = torch.where(found, columns, found.shape[1]).amin(1)
        return (last - first + 1).clamp(min=0).double()

    lungs = width((labels == 1) | (labels == 2))
    return torch.where(lungs > 0, width(labels == HEART) / lungs, torch.nan)


def zero_shot_section(task: ChestTask, setup: Setup, work: Path, references: int = 300) -> Section:
    """Run the word in several ways, against the same chain toward the own prompt and against doing nothing.

    Args:
        task: normal cases.
        setup: where to run.
        work: folder of stored results.
        references: other normal chests, whose upper quarter of hearts is large.
    """
    others = labeled_chests(task, references, work)
    large = others["heart_ratio"] >= torch.quantile(others["heart_ratio"], UPPER)
    features = apply(task.classifier.features, others["image"])
    known = {"distance": features[large], "distance_small": features[~large]}
    section = Section(HEARTS)
    labels = ("subtracted", "plain", "subtracted, strength 0.9, guidance 7.5", "in a sentence, subtracted")
    rows = [(f"{row.label}, {how}", row, task.cases) for row, how in zip(CARDIOMEGALY, labels, strict=True)]
    rows.append(("an unknown word (xylophone), subtracted", induce("xylophone"), task.cases))
    rows.append((CONTROLS[0].label, CONTROLS[0], task.own_class_cases))
    for label, row, cases in rows:
        section.add(label, _figures(task, obtain(row, task.recipe, cases, setup, work).image, known))
        logger.info("%s: measured", label)
    section.add("control: unchanged input", _figures(task, task.cases.image, known))
    return section


def _figures(task: ChestTask, images: Tensor, known: dict[str, Tensor]) -> dict[str, Figure]:
    cases, heart = task.cases, task.cases.truth["segmentation_before"] == HEART
    before, after = (heart_ratio(apply(task.segmenter, each).argmax(1, keepdim=True)) for each in (cases.image, images))
    columns = {
        "heart": share(images - cases.image, heart),
        "chance": heart.flatten(1).double().mean(1),
        "ratio": after,
        "gain": after - before,
        "grown": after - before >= GROWN,
        "normal": apply(task.judge, images).argmax(1) == 0,
    }
    figures = {key: summary(values, cases) for key, values in columns.items()}
    features = apply(task.classifier.features, images)
    for key, reference in known.items():
        metric = FrechetDistance(reference=reference)
        metric(features)
        figures[key] = Figure(metric.aggregate(), *metric.interval(groups=cases.subject), len(features))
    return figures
