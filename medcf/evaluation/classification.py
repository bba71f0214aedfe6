# SPDX-License-Identifier: Apache-2.0
"""How good a classifier is on a test set: predictions, scores by class, and a confusion matrix to look at."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from medcf.evaluation.gate import stacked
from medcf.networks.classifiers import last_layer
from medcf.runtime.atomic import replace_file, write_json
from medcf.runtime.ranks import rank

__all__ = ["ClassifierReport", "Predictions", "class_scores", "draw_confusion", "predict"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of N images of K classes.

    Attributes:
        probabilities: (N, K).
        features: what its last layer gets (N, D).
        label: true classes (N,).
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    label: NDArray[np.int64]

    def save(self, path: str | Path) -> None:
        """Write an NPZ file."""
        replace_file(path, lambda file: np.savez_compressed(file, **vars(self)), binary=True)

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in ("probabilities", "features", "label")})


@torch.no_grad()
def predict(network: nn.Module, dataset: Any, batch_size: int = 64) -> Predictions:
    """Classify a dataset.

    Args:
        network: images (B, C, *spatial) to logits (B, K).
        dataset: items with ``image`` and ``label``.
        batch_size: images per call.
    """
    network.eval()
    device = next(network.parameters()).device
    seen: list[Tensor] = []
    hook = last_layer(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).float()))
    images, label = stacked(dataset, len(dataset))
    try:
        parts = [network(part.to(device)).float().softmax(1) for part in images.split(batch_size)]
    finally:
        hook.remove()
    return Predictions(torch.cat(parts).cpu().numpy(), torch.cat(seen).cpu().numpy(), label.numpy())


def class_scores(probabilities: NDArray[Any], label: NDArray[Any]) -> dict[str, Any]:
    """Score a classifier as Tian et al. do: averages are weighted by the number of images of each class.

    Args:
        probabilities: (N, K).
        label: true classes (N,).

    Returns:
        ``accuracy``, ``precision``, ``recall``, ``f1`` and ``recall_by_class``, K shares, NaN for a class without
        images.
    """
    found, classes = probabilities.argmax(1), list(range(probabilities.shape[1]))
    weighted: dict[str, Any] = {"labels": classes, "average": "weighted", "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(label, found, **weighted)
    by_class = [float((found[label == one] == one).mean()) if (label == one).any() else float("nan") for one in classes]
    scores = {"accuracy": accuracy_score(label, found), "precision": precision, "recall": recall, "f1": f1}
    return {**{name: float(value) for name, value in scores.items()}, "recall_by_class": by_class}


def draw_confusion(
    path: str | Path, matrices: Mapping[str, NDArray[Any]], class_names: Sequence[str], columns: int = 3
) -> None:
    """Draw confusion matrices, rows normalized: where images of each class go.

    Args:
        path: PNG file.
        matrices: (K, K) numbers of images by true and predicted class, by title.
        class_names: K names.
        columns: matrices side by side.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[len(matrices) :]:
        axis.set_axis_off()
    for axis, (title, counts) in zip(axes, matrices.items(), strict=False):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(class_names)), class_names, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(class_names)), class_names, fontsize=8)
        axis.set_xlabel("predicted", fontsize=8)
        axis.set_ylabel("true", fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=color)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    replace_file(path, lambda file: file.write(buffer.getvalue()), binary=True)


@dataclass
class ClassifierReport:
    """Tests a trained classifier and writes what it says, for looking at and for votes.

    Attributes:
        network: the classifier with its last weights.
        datasets: by name; "test" is what is scored. Predictions of all are written to ``NAME.npz``: the vote of
            `medcf.evaluation.ensembles` learns from "val".
        output_dir: folder for ``scores.json``, ``confusion.png`` and the predictions.
        class_names: names of the classes.
        told: further entries of ``scores.json``, such as the regime.
    """

    network: nn.Module
    datasets: Mapping[str, Any]
    output_dir: str | Path
    class_names: Sequence[str]
    told: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Predict, score, print and write; on the main process alone."""
        if rank() > 0:
            return {}
        folder = Path(self.output_dir)
        found = {name: predict(self.network, dataset) for name, dataset in self.datasets.items()}
        for name, predictions in found.items():
            predictions.save(folder / f"{name}.npz")
        test = found["test"]
        scores = class_scores(test.probabilities, test.label)
        classes = list(range(test.probabilities.shape[1]))
        counts = confusion_matrix(test.label, test.probabilities.argmax(1), labels=classes)
        title = f"{', '.join(str(value) for value in self.told.values())}: {scores['accuracy']:.3f}"
        draw_confusion(folder / "confusion.png", {title: counts}, self.class_names)
        by_class = [None if np.isnan(share) else share for share in scores["recall_by_class"]]
        figures = {**self.told, "images": len(test.label), **scores, "recall_by_class": by_class}
        write_json(folder / "scores.json", {**figures, "confusion": counts.tolist()})
        shares = ", ".join(
            f"{name} {share:.2f}" for name, share in zip(self.class_names, by_class, strict=True) if share is not None
        )
        sys.stdout.write(
            f"{title} accuracy of {len(test.label)} test images; weighted precision {scores['precision']:.3f}, recall "
            f"{scores['recall']:.3f}, F1 {scores['f1']:.3f}\n  recall by class: {shares}\n"
        )
        return figures
