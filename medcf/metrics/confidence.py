# SPDX-License-Identifier: Apache-2.0
"""How far, and how close to the target class, a counterfactual moves the explained classifier's confidence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medcf.metrics.exclusions import (
    ALREADY_TARGET,
    INPUT_NOT_FINITE,
    PRED_NOT_FINITE,
    FlipMetric,
    check_logits,
    left_out_inputs,
)
from medcf.registry import METRICS

__all__ = ["BoundedKL", "MeanAbsoluteDifference"]


class _ConfidenceMetric(FlipMetric):
    """Common part: the probability of the target class, over inputs that f assigns to another class."""

    reasons = (INPUT_NOT_FINITE, ALREADY_TARGET, PRED_NOT_FINITE)

    def _probabilities(self, y_pred: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        y = check_logits(type(self).__name__, self.target, y_pred, y)
        left_out = (*left_out_inputs(y, self.target), ~y_pred.isfinite().all(1))
        return y_pred.float().softmax(1), y.float().softmax(1), left_out


class MeanAbsoluteDifference(_ConfidenceMetric):
    """MAD: mean |p_y(x_c) - p_y(x)| of the classifier's confidence in the target class y.

    Computed over the inputs x that the classifier assigns to another class. The absolute value also rewards a
    counterfactual that moves AWAY from the target; ``mean_difference`` has a sign. Source: Diff-ICE section 4, after
    Weng et al., FastDiME (ECCV 2024), whose code averages |p(original) - p(counterfactual)| over all images of a set,
    whatever the classifier predicts for them.

    Example:
        >>> metric = MeanAbsoluteDifference(target=1)
        >>> before = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
        >>> after = torch.tensor([[0.2, 0.8], [0.7, 0.3]]).log()
        >>> _ = metric(after, before)
        >>> round(metric.aggregate(), 4), round(metric.mean_difference, 4)
        (0.4, 0.3)
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the confidences given by logits (B, K): (B, 3), including absolute and signed difference."""
        after, before, left_out = self._probabilities(y_pred, y)
        difference = (after - before)[:, self.target]
        return self.entry(torch.stack([difference.abs(), difference], dim=1), *left_out)

    @property
    def mean_difference(self) -> float:
        """Mean p_y(x_c) - p_y(x) over the same cases: negative if counterfactuals move away from the target."""
        return float(self._column(2).nanmean())


class BoundedKL(_ConfidenceMetric):
    """BKL: mean of 1 - exp(-KL(onehot_y || p(x_c))), which is 1 - p_y(x_c).

    The divergence of a one-hot label from a prediction is -log p_y, so the bounded value is the certainty that the
    target class lacks. Computed over inputs that the classifier assigns to another class. Source: Jeanneret et al.,
    DiME (ACCV 2022), whose code has the binary form; Diff-ICE section 4.

    Example:
        >>> metric = BoundedKL(target=1)
        >>> inputs = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
        >>> _ = metric(torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(), inputs)
        >>> round(metric.aggregate(), 4)
        0.375
    """

    higher_is_better = False

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Measure the missing confidence by the counterfactual's logits (B, K): (B, 2), with 1 - p_y."""
        after, _, left_out = self._probabilities(y_pred, y)
        # 1 - p_y as the sum of the other classes, which stays precise when p_y rounds to 1.
        after[:, self.target] = 0
        return self.entry(after.sum(1), *left_out)


METRICS.add("confidence_change", "MAD: change of the classifier's confidence in the target", MeanAbsoluteDifference)
METRICS.add("bounded_kl", "missing confidence of the classifier in the target", BoundedKL)
