# SPDX-License-Identifier: Apache-2.0
"""Pictures of the benchmark on brain phantoms: counterfactuals side by side, and the effect of guidance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.brain.task import BrainTask
from benchmarks.counterfactual.figure import plt, save
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.task import apply

__all__ = ["draw_dose", "draw_sheet"]

CLASSES = ("CN", "AD")


def draw_sheet(path: Path, task: BrainTask, labels: Sequence[str], results: Sequence[Result]) -> None:
    """Draw one subject of each class: an axial and a coronal slice of every counterfactual, and its difference.

    Args:
        path: PNG to write.
        task: the inputs.
        labels: names of the methods.
        results: their counterfactuals.
    """
    shown = [int((task.label == label).nonzero()[0]) for label in (0, 1)]
    rows = [("input", task.cases.image), *zip(labels, (result.image for result in results), strict=True)]
    figure, axes = plt.subplots(len(rows), 6, figsize=(11.5, 1.75 * len(rows)), squeeze=False, layout="constrained")
    for (name, images), line in zip(rows, axes, strict=True):
        for block, case in enumerate(shown):
            volume = images[case, 0]
            change = volume - task.cases.image[case, 0]
            pictures = (_axial(volume), _coronal(volume), _axial(change))
            for axis, picture, kind in zip(line[3 * block : 3 * block + 3], pictures, "vvd", strict=True):
                limit, colors = (1.0, "gray") if kind == "v" else (0.8, "RdBu_r")
                axis.imshow(picture, cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest", origin="lower")
                axis.set_xticks([])
                axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for block, case in enumerate(shown):
        label = int(task.label[case])
        axes[0, 3 * block].set_title(f"{CLASSES[label]} to {CLASSES[1 - label]}: axial", fontsize=8)
        axes[0, 3 * block + 1].set_title("coronal", fontsize=8)
        axes[0, 3 * block + 2].set_title("difference", fontsize=8)
    save(figure, path)


def draw_dose(path: Path, task: BrainTask, labels: Sequence[str], results: Sequence[Result]) -> None:
    """Plot the change of the ventricles and the margins of f and the judge against w, one line a strength and class.

    Args:
        path: PNG to write.
        task: the inputs.
        labels: names of the rows, "w = 2" or "w = 2, strength 1".
        results: their counterfactuals.
    """
    column = task.structure("ventricles")
    before = apply(task.volumes, task.cases.image, 8)[:, column]
    lines: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
    for label, result in zip(labels, results, strict=True):
        found = re.match(r"w = ([\d.]+)(?:, strength ([\d.]+))?", label)
        if found is None:
            continue
        change = (apply(task.volumes, result.image, 8)[:, column] - before) / 1000
        margins = [_margin(task, network, result.image) for network in (task.classifier, task.judge)]
        for kind in (0, 1):
            kept = task.label == kind
            point = [float(found[1]), *(float(values[kept].mean()) for values in (change, *margins))]
            lines.setdefault((found[2] or "default", kind), []).append(tuple(point))  # type: ignore[arg-type]
    titles = ("change of the ventricles, ml", "logit margin of the target, f", "logit margin of the target, judge")
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for (strength, kind), points in lines.items():
        points.sort()
        for index, axis in enumerate(axes):
            name = f"{CLASSES[kind]} to {CLASSES[1 - kind]}, strength {strength}"
            style = "-" if strength == "default" else "--"
            axis.plot([p[0] for p in points], [p[index + 1] for p in points], f"o{style}", label=name, color=f"C{kind}")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xlabel("guidance w")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    save(figure, path)


def _margin(task: BrainTask, network: torch.nn.Module, images: Tensor) -> Tensor:
    target = task.cases.target
    assert target is not None
    logits = apply(network, images, 8)
    return (logits.gather(1, target[:, None]) - logits.gather(1, 1 - target[:, None]))[:, 0]


def _axial(volume: Tensor) -> Tensor:
    """Slice through the bodies of the ventricles, a little above the middle."""
    return volume[:, :, volume.shape[2] // 2 + round(0.07 * volume.shape[2])].T


def _coronal(volume: Tensor) -> Tensor:
    """Slice through the hippocampi, a little behind the middle."""
    return volume[:, volume.shape[1] // 2 - round(0.1 * volume.shape[1])].T
