# SPDX-License-Identifier: Apache-2.0
"""How well do the judges tell the classes apart?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcf.metrics.base import CaseMetric, collected
from medcf.metrics.bootstrap import bootstrap_interval
from medcf.registry import METRICS

__all__ = ["BalancedAccuracy"]


class BalancedAccuracy(CaseMetric):
    """Mean of the recalls of the classes that occur.

    Args:
        threshold: scores at or above this are class 1, others class 0; None expects decided classes.

    Example:
        >>> metric = BalancedAccuracy()
        >>> _ = metric(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
        >>> metric.aggregate(), metric.per_case().mean().item()
        (0.75, 0.75)
    """

    higher_is_better = True
    needs: ClassVar[Mapping[str, str]] = {"y_pred": "{of}", "y": "label"}
    quantity = "predicted(image)"

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Pair the decisions (B,) with the true classes ``y`` (B,): (B, 2)."""
        if y is None or y.shape != y_pred.shape:
            raise ValueError("BalancedAccuracy needs the decided classes (B,), and the true ones as y.")
        if self.threshold is not None:
            y_pred = y_pred >= self.threshold
        return torch.stack([y_pred.long().cpu(), y.long().cpu()], dim=1)

    def per_case(self) -> Tensor:
        """Return whether each case was decided correctly (N,)."""
        decided, true = collected(self).unbind(1)
        return (decided == true).double()

    def aggregate(self) -> float:
        """Return the mean recall."""
        return _mean_recall(collected(self).numpy())

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        return bootstrap_interval(_mean_recall, collected(self).numpy(), groups=groups, **options)


def _mean_recall(pairs: NDArray[np.int64]) -> float:
    decided, true = pairs.T
    return float(np.mean([(decided[true == label] == label).mean() for label in np.unique(true)]))


METRICS.add("balanced_accuracy", "mean of the recalls of the classes", BalancedAccuracy)
