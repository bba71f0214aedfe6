# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals of real brains both ways: nobody knows the truth, so classifiers and measured sizes speak."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medcf.data.volumes import VolumeDataset
from scipy import ndimage
from torch import Tensor

from benchmarks.brain.likeness import deep_csf_fraction
from benchmarks.brain.real_sets import SETS, RealSet, prepared
from benchmarks.brain.rows import PAPER, PLAIN, controlcg
from benchmarks.counterfactual.environment import describe_machine
from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure, insert, markdown, write_csv
from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.metrics import MSE, SSIM, CaseMetric, FrechetDistance, ReIdentification, pooled_pixels
from medcf.metrics.bootstrap import bootstrap_interval
from medcf.metrics.volumes import SegmentedVolumes
from medcf.networks.pooled_features import pooled_features
from medcf.runtime.weights import load_weights

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

MEASURES = (
    Measure("flips", "flips of f", "validity", "↑", 0, percent=True),
    Measure("confirmed", "flips the judge confirms", "validity", "↑", 0, percent=True),
    Measure("confidence", "f's probability of the target", "validity", "↑", 2),
    Measure("judge_confidence", "the judge's", "validity", "↑", 2),
    Measure("up", "change to class 1", "measured size", "↑", 2),
    Measure("down", "change to class 0", "measured size", "↓", 2),
    Measure("right_way", "changed the right way", "measured size", "↑", 0, percent=True),
    Measure("ssim", "SSIM to the input", "likeness to the input", "", 3),
    Measure("mse", "MSE to the input, gray values in [0, 1]", "likeness to the input", "", 4),
    Measure("rank", "re-identified, pooled voxels (rank 1)", "likeness to the input", "↑", 0, percent=True),
    Measure("fd_target", "to real ones of the target class", "Fréchet distance, judge's features", "↓", 2),
    Measure("fd_source", "to real ones of the input's class", "Fréchet distance, judge's features", "", 2),
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
    grid = {"size": parser["spatial_size"], "spacing": parser["spacing"], "mask": parser["mask"] or "auto"}
    if real.segmentation is not None:
        grid["targets"] = ("label", "segmentation")
    train, held_out = (VolumeDataset(table, split, **grid) for split in ("train", "val"))
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
        size=partial(deep_fluid, spacing=float(grid["spacing"]))
        if real.segmentation is None
        else _segmented(real, out, grid),
        true_size=None
        if real.segmentation is None
        else torch.tensor(
            [float((item["segmentation"] > 0).sum()) * float(grid["spacing"]) ** 3 / 1000 for item in items]
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


def _segmented(real: RealSet, out: Path, grid: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Volume in ml of all labels of the set's own segmenter."""
    step = real.steps["segmenter"]
    definition = Recipe("controlcg", step.configs, step.overrides).open()
    network = load_weights(definition.get_parsed_content("network_def"), out / "models" / "segmenter.pt").eval()
    volumes = SegmentedVolumes(network, grid["spacing"])
    return lambda images, inputs: apply(volumes, images, BATCH).sum(1) / 1000


def measure(task: RealTask, result: Any) -> dict[str, Figure]:
    """Measure counterfactuals; intervals are over subjects, and inputs that f calls the target already do not flip."""
    images, inputs, target, groups = result.image, task.cases.image, task.cases.target, task.cases.subject
    assert target is not None
    before, after, judged = (
        apply(network, values, BATCH)
        for network, values in ((task.classifier, inputs), (task.classifier, images), (task.judge, images))
    )
    entered = before.argmax(1) != target
    flipped = (after.argmax(1) == target) & entered
    column = target[:, None]
    change = (task.size(images, inputs) - task.size(inputs, inputs)).double()
    right = ((change > 0) == (target == 1)) & (change != 0)
    figures = {
        "flips": _mean(flipped, groups, entered),
        "confirmed": _mean(judged.argmax(1) == target, groups, flipped),
        "confidence": _mean(after.softmax(1).gather(1, column)[:, 0], groups),
        "judge_confidence": _mean(judged.softmax(1).gather(1, column)[:, 0], groups),
        "up": _mean(change, groups, target == 1),
        "down": _mean(change, groups, target == 0),
        "right_way": _mean(right, groups),
    }
    rank = ReIdentification(1)
    names = sorted(set(groups))
    pooled = partial(pooled_pixels, size=tuple(n // 4 for n in images.shape[2:]))
    rank(pooled(images), pooled(inputs), subject=torch.tensor([names.index(name) for name in groups]))
    for key, metric in {"ssim": SSIM(), "mse": MSE()}.items():
        metric(images, inputs)
        figures[key] = _figure(metric, groups)
    return {**figures, "rank": _figure(rank, groups), **_distances(task, images)}


def accuracies(task: RealTask) -> dict[str, Figure]:
    """Accuracy of f and of the judge on the held-out volumes."""
    networks = {"f": task.classifier, "judge": task.judge}
    return {
        name: _mean(apply(network, task.cases.image, BATCH).argmax(1) == task.label, task.cases.subject)
        for name, network in networks.items()
    }


def _distances(task: RealTask, images: Tensor) -> dict[str, Figure]:
    """Fréchet distances to the training volumes of both classes; both ways put together by their mean."""
    features = partial(pooled_features, task.judge)
    made = apply(features, images, BATCH)
    real = {k: apply(features, task.train[0][task.train[1] == k], BATCH) for k in (0, 1)}
    target = task.cases.target
    assert target is not None
    found: dict[str, list[float]] = {"fd_target": [], "fd_source": []}
    for wanted in (0, 1):
        for key, reference in (("fd_target", real[wanted]), ("fd_source", real[1 - wanted])):
            metric = FrechetDistance("classifier", reference=reference)
            metric(made[target == wanted])
            found[key].append(float(metric.aggregate()))
    return {key: Figure(float(np.mean(values)), count=len(images)) for key, values in found.items()}


def _mean(values: Tensor, groups: Sequence[str], kept: Tensor | None = None) -> Figure:
    keep = torch.ones(len(values), dtype=torch.bool) if kept is None else kept
    chosen = values[keep].double().numpy()
    if not len(chosen):
        return Figure(math.nan)
    names = [name for name, keeps in zip(groups, keep.tolist(), strict=True) if keeps]
    low, high = bootstrap_interval(lambda sample: float(sample.mean()), chosen, groups=names)
    return Figure(float(chosen.mean()), low, high, len(chosen))


def _figure(metric: CaseMetric, groups: Sequence[str]) -> Figure:
    low, high = metric.interval(groups=groups)
    return Figure(metric.aggregate(), low, high, metric.counts().entered)


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
    shown = {key: Measure("", "", "", "", 0, percent=True).show(value) for key, value in accuracies(task).items()}
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
        f"{describe_machine('cpu', 1)} Intervals: 95 %, over subjects. Figures: `brain_mri_{name}.csv`."
    )
    page = docs / "brain_mri.md"
    if page.is_file():
        insert(page, name, text)
    logger.info("%s", text)
