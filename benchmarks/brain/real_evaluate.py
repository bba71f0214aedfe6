# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals of real brains in both directions: the truth is unknown, so classifiers and measured sizes judge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.brain.likeness import deep_csf_fraction
from benchmarks.brain.real_sets import SETS, RealSet, prepared
from benchmarks.brain.rows import PAPER, PLAIN, controlcg
from benchmarks.counterfactual.environment import INTERVALS, describe_machine
from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure, insert, markdown, measured, write_csv
from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.evaluation import Evidence
from medcf.metrics import FrechetDistance, pooled_pixels
from medcf.metrics.volumes import SegmentedVolumes
from medcf.networks.pooled_features import pooled_features
from medcf.runtime.weights import load_weights
from medcf.training.datasets import own_dataset

__all__ = ["ROWS", "RealTask", "deep_fluid", "evaluate", "load_task", "measure"]

logger = logging.getLogger(__name__)

BATCH = 8
CHANNELS = {"t1": "deep fluid, % of the inner brain", "hippocampus": "hippocampus, ml"}


ROWS = (
    controlcg("controlcg", "ControlCG, the bundle's default"),
    controlcg("off", "default, injection off", injection_scale=0.0),
    controlcg("strength_80", "strength 0.8", strength=0.8),
    controlcg("plain", "default, reconstruction not subtracted", **PLAIN),
    controlcg("strength_40", "strength 0.4, w = 8, not subtracted", w=8.0, strength=0.4, **PLAIN),
    controlcg("strength_100", "strength 1.0 (paper), w = 3, not subtracted", **PAPER),
    Row("unchanged", "control: unchanged input", {"method": "unchanged"}, control=True),
)


def _mean(of: str, **entry: str) -> dict[str, str]:
    return {"name": "mean", "of": of, **entry}


_LIKE, _DISTANCES = "likeness to the input", "Fréchet distance, judge's features"

MEASURES = (
    Measure("flips", "flips of f", "validity", "↑", 0, True, _mean("flipped", where="entered")),
    Measure("confirmed", "flips the judge confirms", "validity", "↑", 0, True, _mean("confirmed", where="flipped")),
    Measure("confidence", "f's probability of the target", "validity", "↑", 2, metric=_mean("confidence(pred)")),
    Measure("judge_confidence", "the judge's", "validity", "↑", 2, metric=_mean("judge_confidence(pred)")),
    Measure("up", "change to class 1", "measured size", "↑", 2, metric=_mean("change", where="up")),
    Measure("down", "change to class 0", "measured size", "↓", 2, metric=_mean("change", where="down")),
    Measure("right_way", "changed the right way", "measured size", "↑", 0, True, _mean("right")),
    Measure("ssim", "SSIM to the input", _LIKE, "", 3, metric="ssim"),
    Measure("mse", "MSE to the input, gray values in [0, 1]", _LIKE, "", 4, metric="mse"),
    Measure("rank", "re-identified, pooled voxels (rank 1)", _LIKE, "↑", 0, True,
            {"name": "re_identification", "of": "pooled", "k": 1}),
    Measure("fd_target", "to real ones of the target class", _DISTANCES, "↓", 2),
    Measure("fd_source", "to real ones of the input's class", _DISTANCES, "", 2),
)  # fmt: skip
#: Who decides right on the held-out volumes.
ACCURACIES = (
    Measure("f", "", "", "", 0, True, _mean("right(logits)")),
    Measure("judge", "", "", "", 0, True, _mean("right(judge)")),
)


@dataclass(frozen=True)
class RealTask:
    """What is explained, and who judges it.

    Attributes:
        recipe: the bundle with the set's overlay and weights.
        cases: held-out volumes, the target is the other class.
        label: their classes (N,).
        train: volumes and classes that the networks were trained on.
        classifier: f, images to logits.
        judge: another classifier, images to logits.
        size: images and inputs (N, 1, X, Y, Z) to what is measured of them (N,).
        true_size: the same by the annotators' segmentations (N,); None where there are none.
    """

    recipe: Recipe
    cases: Cases
    label: Tensor
    train: tuple[Tensor, Tensor]
    classifier: Any
    judge: Any
    size: Callable[[Tensor, Tensor], Tensor]
    true_size: Tensor | None = None


def load_task(name: str, out: Path, limit: int | None = None) -> RealTask:
    """Read the volumes that `prepare` listed, and the networks that were trained on them.

    Args:
        name: key of ``SETS``.
        out: folder of the table and of ``models``.
        limit: take only the first so many held-out volumes.
    """
    real, table = SETS[name], prepared(out)
    recipe = Recipe("controlcg", ("inference.json", real.overlay), {"models_dir": str(out / "models")})
    judged = Recipe("controlcg", ("inference.json", "evaluate.json", real.overlay), recipe.overrides).open()
    parser = recipe.open()
    prepare = parser.get_parsed_content("preprocessing")
    targets = ("label",) if real.segmentation is None else ("label", "segmentation")
    train, held_out = (
        own_dataset(table, split, prepare, spatial_dims=3, targets=targets) for split in ("train", "val")
    )
    items = [held_out[index] for index in range(len(held_out) if limit is None else min(limit, len(held_out)))]
    known = [train[index] for index in range(len(train))]
    label = torch.stack([item["label"] for item in items])
    judge = load_weights(judged.get_parsed_content("oracle_def"), out / "models" / "judge.pt")
    return RealTask(
        recipe=recipe,
        cases=Cases(
            torch.stack([item["image"] for item in items]),
            [item["case"] for item in items],
            [item["subject"] for item in items],
            target=1 - label,
        ),
        label=label,
        train=(torch.stack([item["image"] for item in known]), torch.stack([item["label"] for item in known])),
        classifier=parser.get_parsed_content("classifier").eval(),
        judge=judge.eval(),
        size=partial(deep_fluid, spacing=float(parser["spacing"]))
        if real.segmentation is None
        else _segmented(real, out, parser["spacing"]),
        true_size=None
        if real.segmentation is None
        else torch.tensor(
            [float((item["segmentation"] > 0).sum()) * float(parser["spacing"]) ** 3 / 1000 for item in items]
        ),
    )


def deep_fluid(images: Tensor, inputs: Tensor, spacing: float) -> Tensor:
    """Deep fluid (N,) in percent of the inner brain; the brain is that of the inputs.

    Args:
        images: (N, 1, X, Y, Z) in [-1, 1].
        inputs: the same before they were changed, -1 outside of the brain.
        spacing: mm.
    """
    found = []
    for image, original in zip(images.float().numpy(), inputs.float().numpy(), strict=True):
        mask = ndimage.binary_fill_holes(original[0] > -1)
        found.append(100 * deep_csf_fraction((image[0].astype(float) + 1) / 2, mask, spacing))
    return torch.tensor(found)


def _segmented(real: RealSet, out: Path, spacing: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Volume in ml of all labels of the set's own segmenter."""
    step = real.steps["segmenter"]
    definition = Recipe("controlcg", step.configs, step.overrides).open()
    network = load_weights(definition.get_parsed_content("network_def"), out / "models" / "segmenter.pt").eval()
    volumes = SegmentedVolumes(network, spacing)
    return lambda images, inputs: apply(volumes, images, BATCH).sum(1) / 1000


def measure(task: RealTask, result: Any) -> dict[str, Figure]:
    """Measure counterfactuals; intervals are over subjects, and inputs that f calls the target already do not flip."""
    cases = _evidence(task, result.image)
    return measured(MEASURES, cases, {}) | _distances(task, cases)


def accuracies(task: RealTask) -> dict[str, Figure]:
    """Accuracy of f and of the judge on the held-out volumes."""
    return measured(ACCURACIES, _evidence(task, task.cases.image), {})


def _evidence(task: RealTask, images: Tensor) -> Evidence:
    def change(cases: Evidence) -> Tensor:
        inputs = cases["image"]
        return (task.size(cases["pred"], inputs) - task.size(inputs, inputs)).double()

    def right(cases: Evidence, network: str | None = None) -> Tensor:
        if network is None:
            return ((cases["change"] > 0) == cases["up"]) & (cases["change"] != 0)
        found: Tensor = cases[f"{network}(image)"].argmax(1) == task.label
        return found

    return Evidence(
        task.cases.columns(images),
        {
            "logits": task.classifier,
            "judge": task.judge,
            "features": partial(pooled_features, task.judge),
            "pooled": partial(pooled_pixels, size=tuple(n // 4 for n in images.shape[2:])),
        },
        functions={
            "confirmed": lambda cases: cases["judge(pred)"].argmax(1) == cases["target"],
            "up": lambda cases: cases["target"] == 1,
            "down": lambda cases: cases["target"] == 0,
            "change": change,
            "right": right,
        },
        batch_size=BATCH,
    )


def _distances(task: RealTask, cases: Evidence) -> dict[str, Figure]:
    """Fréchet distances to the training volumes of both classes; both ways put together by their mean."""
    known, label = task.train
    real = {k: apply(cases.networks["features"], known[label == k], BATCH) for k in (0, 1)}
    found: dict[str, list[float]] = {"fd_target": [], "fd_source": []}
    for wanted in (0, 1):
        for key, reference in (("fd_target", real[wanted]), ("fd_source", real[1 - wanted])):
            metric = FrechetDistance("classifier", reference=reference)
            metric(cases["features(pred)"][cases["target"] == wanted])
            found[key].append(float(metric.aggregate()))
    return {key: Figure(float(np.mean(values)), count=len(cases)) for key, values in found.items()}


def evaluate(name: str, out: Path, docs: Path, limit: int | None = None, rows: Sequence[str] | None = None) -> None:
    """Run all rows, and write the figures beside the page and into it."""
    torch.set_num_threads(1)
    task = load_task(name, out, limit)
    labels, figures = [], []
    for row in ROWS:
        if rows is None or row.name in rows:
            result = obtain(row, task.recipe, task.cases, Setup(), out / "results")
            labels.append(row.label)
            figures.append(measure(task, result))
            logger.info("%s: measured", row.label)
    write_csv(docs / f"brain_mri_{name}.csv", labels, figures)
    found = accuracies(task)
    shown = {each.key: each.show(found[each.key]) for each in ACCURACIES}
    sizes = task.size(task.cases.image, task.cases.image)
    real = [f"{SETS[name].classes[k]} {float(sizes[task.label == k].mean()):.2f}" for k in (0, 1)]
    known = ""
    if task.true_size is not None:
        r = float(np.corrcoef(sizes, task.true_size)[0, 1])
        bias = float((sizes - task.true_size).mean())
        known = f" Of the real ones it agrees with the annotators by r = {r:.2f}, mean difference {bias:+.2f}."
    text = (
        f"{markdown(labels, figures, MEASURES)}\n{len(task.cases)} held-out volumes of {len(set(task.cases.subject))} "
        f"subjects; {len(task.train[1])} volumes were trained on. Accuracy on the held-out volumes: f {shown['f']}, "
        f"judge {shown['judge']}. Measured size: {CHANNELS[name]}; mean of the real volumes: {', '.join(real)}.{known} "
        f"{describe_machine('cpu', 1)} {INTERVALS} Figures: `brain_mri_{name}.csv`."
    )
    page = docs / "brain_mri.md"
    if page.is_file():
        insert(page, name, text)
    logger.info("%s", text)
