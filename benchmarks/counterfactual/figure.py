# SPDX-License-Identifier: Apache-2.0
"""Pictures of a benchmark on phantoms: counterfactuals side by side, each method's trade-offs, quality gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from sklearn.manifold import TSNE

from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure
from benchmarks.counterfactual.task import Cases, Task, apply

mpl.use("Agg")

from matplotlib import pyplot as plt  # after the backend is chosen

__all__ = ["draw_features", "draw_quality", "draw_sheet", "draw_tradeoff", "plt", "save"]

NOTICE = "SYNTHETIC phantoms and counterfactuals, not for diagnosis"


def draw_sheet(path: Path, cases: Cases, labels: Sequence[str], results: Sequence[Result], count: int = 5) -> None:
    """Draw the input, every method's counterfactual and the paired truth, one column a case.

    Args:
        path: PNG to write.
        cases: phantoms with their true ``image``.
        labels: names of the methods.
        results: their counterfactuals.
        count: cases shown: the first ones.
    """
    count = min(count, len(cases))
    rows = [("input", cases.image), *zip(labels, (result.image for result in results), strict=True)]
    truth = cases.truth.get("image")
    if truth is not None and not any(torch.equal(image, truth) for _, image in rows):
        rows.append(("true standard plane", truth))
    figure, axes = plt.subplots(
        len(rows), count, figsize=(1.9 * count + 1.6, 1.55 * len(rows)), squeeze=False, layout="constrained"
    )
    for (label, images), line in zip(rows, axes, strict=True):
        for index, axis in enumerate(line):
            axis.imshow(images[index, 0], cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    save(figure, path)


def draw_tradeoff(
    path: Path,
    labels: Sequence[str],
    rows: Sequence[Mapping[str, Figure]],
    panels: Sequence[tuple[str, str, str, str]],
) -> None:
    """Plot methods in planes of two figures, with their intervals.

    Args:
        path: PNG to write.
        labels: names of the methods.
        rows: figures by key.
        panels: (key across, its title, key upward, its title) of each panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.4), squeeze=False, layout="constrained")
    colors = plt.get_cmap("tab10")(np.arange(len(labels)) % 10)
    for axis, (across, across_title, up, up_title) in zip(axes[0], panels, strict=True):
        for label, row, color in zip(labels, rows, colors, strict=True):
            if across not in row or up not in row:
                continue
            x, y = row[across], row[up]
            axis.errorbar(x.value, y.value, _bars(y), _bars(x), "o", color=color, label=label, capsize=2, elinewidth=1)
        axis.set_xlabel(across_title)
        axis.set_ylabel(up_title)
        axis.grid(alpha=0.3)
        if across == "seconds":
            axis.set_xscale("log")
    axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    save(figure, path)


def draw_quality(path: Path, scores: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Plot the gain of each of the oracle's scores against the input's score (Diff-ICE, Fig. 4).

    Args:
        path: PNG to write.
        scores: by name, the scores in [0, 1] of inputs and counterfactuals, both (N,).
    """
    figure, axes = plt.subplots(
        1, len(scores), figsize=(3.1 * len(scores), 3.0), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (name, (before, after)) in zip(axes[0], scores.items(), strict=True):
        axis.scatter(before, after - before, s=14, alpha=0.7)
        axis.plot([0, 1], [1, 0], color="gray", linewidth=0.8, linestyle="--")
        axis.axhline(0, color="gray", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("score of the input")
        axis.set_xlim(0, 1)
    axes[0, 0].set_ylabel("score gained")
    save(figure, path)


def draw_features(path: Path, task: Task, labels: Sequence[str], results: Sequence[Result]) -> None:
    """Map the features of inputs, counterfactuals and held-out target images to a plane by scikit-learn's t-SNE.

    One map holds all images, so that panels compare; each shows one method. The features are a published extractor's if
    the task has one, else its judge's. Distances between clusters and their sizes mean nothing in a t-SNE (van der
    Maaten & Hinton, JMLR 2008): read which images are mixed with the target class, and which stay apart.

    Args:
        path: PNG to write.
        task: cases, held-out target images and extractors.
        labels: names of the methods.
        results: their counterfactuals.
    """
    name, extract = next(iter({**task.published, **task.extractors}.items()))
    made = [apply(extract, images) for images in (task.cases.image, *(result.image for result in results))]
    features = torch.cat([task.reference_features(name), *made]).double().numpy()
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    target, inputs, *methods = np.split(points, np.cumsum([len(task.reference), *map(len, made)])[:-1])
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(labels) :]:
        axis.remove()
    for axis, label, counterfactuals in zip(axes.flat, labels, methods, strict=False):
        for where, color, legend in ((target, "0.75", "target class"), (inputs, "tab:blue", "inputs")):
            axis.scatter(*where.T, s=5, color=color, label=legend)
        axis.scatter(*counterfactuals.T, s=9, color="tab:red", label="counterfactuals")
        axis.set_title(label, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].legend(fontsize=7)
    figure.suptitle(f"t-SNE of the features of {name}", fontsize=10)
    save(figure, path, NOTICE if task.name == "phantoms" else "SYNTHETIC counterfactuals, not for diagnosis")


def _bars(figure: Figure) -> list[list[float]] | None:
    if not (np.isfinite(figure.low) and np.isfinite(figure.high)):
        return None
    return [[max(figure.value - figure.low, 0)], [max(figure.high - figure.value, 0)]]


def save(figure: plt.Figure, path: Path, notice: str = NOTICE) -> None:
    """Write a figure with a notice of what on it is synthetic."""
    figure.supxlabel(notice, fontsize=7, color="gray")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
