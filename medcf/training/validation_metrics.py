# SPDX-License-Identifier: Apache-2.0
"""Validation metrics for the trainings, for use in MONAI's evaluators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.metrics import EpochMetric
from monai.transforms import AsDiscrete
from monai.utils import CommonKeys

__all__ = [
    "BalancedAccuracy",
    "PairRecall",
    "ParameterFit",
    "class_decision",
    "output_pair",
    "quality_decision",
    "segmentation_pair",
]


def class_decision(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read decision and truth, each (B,), from a decollated output whose ``pred`` holds class scores."""
    decisions = torch.stack([item[CommonKeys.PRED].argmax(dim=0) for item in output])
    labels = torch.stack([torch.as_tensor(item[CommonKeys.LABEL]).reshape(()) for item in output])
    return decisions.cpu(), labels.cpu()


def quality_decision(threshold: float = 0.5) -> Callable[[list[dict[str, Any]]], tuple[torch.Tensor, torch.Tensor]]:
    """Create a function that reads "quality reaches the threshold" as decision and the class label as truth."""

    def read(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        decisions = torch.stack(
            [torch.as_tensor(item[CommonKeys.PRED]["quality"] >= threshold).reshape(()) for item in output]
        )
        labels = torch.stack([torch.as_tensor(item[CommonKeys.LABEL]["label"]).reshape(()) for item in output])
        return decisions.long().cpu(), labels.cpu()

    return read


class BalancedAccuracy(EpochMetric):
    """Mean over the classes of the fraction that is recognized (scikit-learn's ``balanced_accuracy_score``).

    Args:
        output_transform: maps the evaluator's output to (decisions, labels).
    """

    def __init__(self, output_transform: Callable[[Any], Any] = class_decision) -> None:
        super().__init__(_balanced_accuracy, output_transform=output_transform, check_compute_fn=False)


class ParameterFit(EpochMetric):
    """Mean over the parameters of R², the fraction of their variance that is recovered."""

    def __init__(self) -> None:
        super().__init__(_mean_r2, output_transform=_parameters, check_compute_fn=False)


class PairRecall(EpochMetric):
    """Fraction of the images whose partner is the nearest of all images at the other position in a pair.

    The evaluator's batches hold first images, then second images, as `PairPrepareBatch` arranges them.
    """

    def __init__(self) -> None:
        super().__init__(_recall, output_transform=_embeddings, check_compute_fn=False)


def output_pair(key: str) -> Callable[[list[dict[str, Any]]], tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Create a function that reads one output of `medcf.networks.ConceptBottleneck` and its truth, for MONAI's metrics.

    Args:
        key: ``"concepts"`` or ``"quality"``.
    """

    def read(output: list[dict[str, Any]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        pairs = [(item[CommonKeys.PRED][key], item[CommonKeys.LABEL][key]) for item in output]
        predictions, targets = zip(
            *[[torch.as_tensor(value).float().reshape(-1) for value in pair] for pair in pairs], strict=True
        )
        return list(predictions), list(targets)

    return read


def segmentation_pair(
    key: str | None = None,
) -> Callable[[list[dict[str, Any]]], tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Create a function that reads a segmentation and its truth as one-hot masks, for MONAI's metrics.

    Args:
        key: key of the segmentation if ``pred`` and ``label`` are dictionaries.
    """

    def read(output: list[dict[str, Any]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        predictions, targets = [], []
        for item in output:
            scores, truth = item[CommonKeys.PRED], item[CommonKeys.LABEL]
            scores, truth = (scores[key], truth[key]) if key else (scores, truth)
            classes = scores.shape[0]
            predictions.append(torch.as_tensor(AsDiscrete(argmax=True, to_onehot=classes)(scores)))
            targets.append(torch.as_tensor(AsDiscrete(to_onehot=classes)(truth)))
        return predictions, targets

    return read


def _balanced_accuracy(decisions: torch.Tensor, labels: torch.Tensor) -> float:
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(labels.numpy(), decisions.numpy()))


def _parameters(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    predicted = torch.stack([item[CommonKeys.PRED]["parameters"] for item in output])
    return predicted.cpu(), torch.stack([item[CommonKeys.LABEL] for item in output]).cpu()


def _embeddings(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.stack([item[CommonKeys.PRED]["embedding"] for item in output]).cpu().chunk(2)
    return first, second


def _mean_r2(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    residual = ((predicted - truth) ** 2).sum(0)
    return float((1.0 - residual / ((truth - truth.mean(0)) ** 2).sum(0)).mean())


def _recall(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(((first @ second.T).argmax(1) == torch.arange(len(first))).float().mean())
