# SPDX-License-Identifier: Apache-2.0
"""Validity: does the counterfactual have the requested class?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from medcf.metrics.exclusions import FlipMetric, calls_target, check_logits, left_out_inputs
from medcf.registry import METRICS

__all__ = ["FlipRatio"]


class FlipRatio(FlipMetric):
    """Fraction of the inputs of another class that their counterfactuals bring to the target class.

    Inputs already assigned to the target class do not count; ``left_out`` is their number. A counterfactual with
    non-finite logits is not a flip. The attacked classifier itself decides, so a gradient attack wins here: read it
    together with ``FlipSurvival`` and ``OracleAgreement``. Source: FR in Pegios et al., Diff-ICE, section 4.

    Example:
        >>> import torch
        >>> metric = FlipRatio(target=1)
        >>> before = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> after = torch.tensor([[0.0, 2.0], [1.0, 0.5], [0.0, 3.0]])
        >>> _ = metric(after, before)
        >>> metric.aggregate(), metric.entered, metric.left_out
        (0.5, 2, 1)
        >>> metric.left_out_cases()
        {'the input is already of the target class': [2]}
    """

    is_share = True

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the decisions by the logits (B, K) of counterfactuals and inputs ``y``: (B, 2), with the flips."""
        y = check_logits("FlipRatio", self.target, y_pred, y)
        return self.entry(calls_target(y_pred, self.target), *left_out_inputs(y, self.target))

    @property
    def entered(self) -> int:
        """Number of inputs of another class."""
        return self.counts().entered

    @property
    def left_out(self) -> int:
        """Number of inputs that do not count."""
        return sum(self.counts().left_out.values())


METRICS.add("flip_ratio", "fraction of inputs brought to the target class", FlipRatio)
