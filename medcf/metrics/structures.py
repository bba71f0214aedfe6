# SPDX-License-Identifier: Apache-2.0
"""Ground truth for structures: are they where the paired truth has them, and which were invented or lost?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric, compute_dice
from torch import Tensor

from medcf.metrics.base import Counts, collected
from medcf.metrics.bootstrap import interval_of_entered
from medcf.registry import METRICS

__all__ = ["StructureChanges", "StructureDice", "structure_change"]


def structure_change(before: Tensor, after: Tensor, labels: Iterable[int] | None = None) -> Tensor:
    """Return where two label maps differ.

    Args:
        before: integer labels (B, 1, *spatial) of the inputs.
        after: labels of the paired truth, of the same shape.
        labels: labels whose change counts; None counts all.

    Returns:
        (B, 1, *spatial) bool: where one of these labels is in one of the two only.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> structure_change(torch.tensor([[[[0, 2, 1]]]]), torch.tensor([[[[0, 3, 0]]]]), labels=[2, 3]).int().tolist()
        [[[[0, 1, 0]]]]
    """
    if before.shape != after.shape:
        raise ValueError(f"The label maps have the shapes {tuple(before.shape)} and {tuple(after.shape)}.")
    if labels is None:
        return before != after
    changed = torch.zeros_like(before, dtype=torch.bool)
    for label in labels:
        changed |= (before == label) != (after == label)
    return changed


class _Structures(CumulativeIterationMetric):
    """The common part of both metrics: the label maps of the counterfactuals and of the paired truth.

    Args:
        structures: label of each structure, by name.
        min_pixels: smaller regions are ignored, in both.
    """

    higher_is_better = True
    needs: ClassVar = {"y_pred": "{of}({on})", "y": "segmentation_true"}
    quantity = "segmentation"

    def __init__(self, structures: Mapping[str, int], min_pixels: int = 0) -> None:
        super().__init__()
        self.structures = dict(structures)
        self.min_pixels = min_pixels

    def _masks(self, labels: Tensor) -> Tensor:
        """Return one Boolean channel per structure, empty if it has fewer pixels than ``min_pixels``."""
        masks = torch.cat([labels == value for value in self.structures.values()], dim=1)
        large = masks.flatten(2).sum(2) >= self.min_pixels
        return masks & large[(...,) + (None,) * (masks.ndim - 2)]


class StructureDice(_Structures):
    """Dice of named structures against a paired truth.

    Absent structures count: finding nothing if nothing exists scores 1, finding anything then scores 0 (MONAI's
    ``compute_dice`` with ``ignore_empty=False``).

    Example:
        >>> metric = StructureDice({"cavum": 3})
        >>> truth = torch.tensor([[[[3, 3, 0, 0]]]])
        >>> _ = metric(torch.tensor([[[[3, 0, 0, 0]]]]), truth)
        >>> round(metric.aggregate()["cavum"], 3)
        0.667
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the integer labels (B, 1, *spatial) of counterfactuals and truth: Dice, (B, structures)."""
        if y is None:
            raise ValueError("StructureDice needs the truth's labels as y.")
        return compute_dice(self._masks(y_pred).float(), self._masks(y).float(), ignore_empty=False)

    def aggregate(self) -> dict[str, float]:
        """Return the mean Dice of each structure."""
        return dict(zip(self.structures, self.get_buffer().mean(0).tolist(), strict=True))


class StructureChanges(_Structures):
    """Structures that a counterfactual invented or lost, compared with the paired truth.

    ``aggregate`` gives four rates per structure: ``invented`` among the cases whose truth lacks it, ``lost`` and
    ``kept`` among those whose truth has it, and ``right``, the fraction of all cases in which it is present if and only
    if the truth has it. A rate without cases is NaN. Applied to the unchanged inputs, the same metric shows the result
    of doing nothing.

    Example:
        >>> metric = StructureChanges({"cavum": 3}, min_pixels=1)
        >>> truth = torch.tensor([[[[3, 3]]], [[[0, 0]]]])
        >>> _ = metric(torch.zeros_like(truth), truth)
        >>> metric.aggregate()["cavum"]
        {'invented': 0.0, 'lost': 1.0, 'kept': 0.0, 'right': 0.5}
    """

    def __init__(self, structures: Mapping[str, int], min_pixels: int = 5) -> None:
        super().__init__(structures, max(int(min_pixels), 1))

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Find the structures in the integer labels (B, 1, *spatial) of both: (B, structures, 2)."""
        if y is None or y.shape != y_pred.shape:
            raise ValueError("StructureChanges needs the truth's labels as y, of the shape of y_pred.")
        found = [self._masks(labels).flatten(2).any(2) for labels in (y_pred, y)]
        return torch.stack(found, dim=2)

    def presence(self) -> Tensor:
        """Return whether each structure is present (N, structures, 2): in the counterfactual and in the truth."""
        return collected(self).bool()

    def aggregate(self) -> dict[str, dict[str, float]]:
        """Return the rates of each structure."""
        return self._by_structure_and_rate(_rate)

    def interval(
        self,
        *,
        groups: Sequence[Hashable] | None = None,
        confidence: float = 0.95,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """Return the intervals of the rates; ``groups`` gives the subject of each case."""
        options: dict[str, Any] = {"confidence": confidence, "num_resamples": num_resamples, "seed": seed}

        def interval(cases: np.ndarray, rate: str) -> tuple[float, float]:
            outcome, concerned = _outcomes(cases, rate)
            return interval_of_entered(np.mean, outcome, entered=concerned, groups=groups, **options)

        return self._by_structure_and_rate(interval)

    def _by_structure_and_rate(self, function: Callable[[np.ndarray, str], Any]) -> dict[str, dict[str, Any]]:
        columns = zip(self.structures, self.presence().cpu().numpy().transpose(1, 0, 2), strict=True)
        return {name: {rate: function(column, rate) for rate in _RATES} for name, column in columns}

    def counts(self) -> Counts:
        """Return how many cases count: all of them."""
        return Counts(len(self.presence()))


_RATES = ("invented", "lost", "kept", "right")


def _rate(presence: np.ndarray, rate: str) -> float:
    """Compute a rate of ``StructureChanges`` from presence (N, 2); NaN if it applies to no case."""
    outcome, concerned = _outcomes(presence, rate)
    return float(outcome[concerned].mean()) if concerned.any() else float("nan")


def _outcomes(presence: np.ndarray, rate: str) -> tuple[np.ndarray, np.ndarray]:
    """Return from presence (N, 2) in which cases a rate's event happened, and to which cases it applies."""
    found, true = presence[:, 0].astype(bool), presence[:, 1].astype(bool)
    concerned = {"invented": ~true, "right": np.ones_like(true)}.get(rate, true)
    return {"invented": found, "lost": ~found, "kept": found, "right": found == true}[rate], concerned


METRICS.add("structure_dice", "Dice of structures against the paired truth", StructureDice)
METRICS.add("structure_changes", "Structures invented, lost, kept and right compared with the truth", StructureChanges)
