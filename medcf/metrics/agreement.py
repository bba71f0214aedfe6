# SPDX-License-Identifier: Apache-2.0
"""Does a judge that was not involved in making the counterfactuals also see the target class?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medcf.metrics.base import QUANTITIES
from medcf.metrics.exclusions import (
    ALREADY_TARGET,
    INPUT_NOT_FINITE,
    NOT_FLIPPED,
    FlipMetric,
    Summary,
    calls_target,
    left_out_inputs,
    summarize,
)
from medcf.registry import METRICS

__all__ = ["OracleAgreement"]


class OracleAgreement(FlipMetric):
    """Fraction of the flips that an independent judge confirms.

    The classifier that guided the method is its own witness; the judge must share neither data, seed nor initialization
    with it. Only flips count. A judge may assign inputs to the target class when the classifier does not, and then
    "confirms" a counterfactual that changed nothing for it: ``reference`` is the fraction of the same flips' INPUTS
    that the judge assigns to the target. The difference is what the counterfactuals achieved.

    Args:
        target: index of the target class.
        threshold: None if the judge returns logits (B, K); otherwise it returns a quality (B,), and values at or above
            the threshold count as the target.

    Example:
        >>> nsp, sp = [1.0, 0.0], [0.0, 1.0]
        >>> metric = OracleAgreement(target=1, threshold=0.75)
        >>> _ = metric(
        ...     torch.tensor([0.9, 0.8, 0.3, 0.9]),  # the judge's quality of the counterfactuals
        ...     torch.tensor([0.1, 0.8, 0.2, 0.1]),  # and of the inputs
        ...     logits=torch.tensor([sp, sp, sp, nsp]),
        ...     input_logits=torch.tensor([nsp, nsp, nsp, nsp]),
        ... )
        >>> round(metric.aggregate(), 3), round(metric.reference().mean, 3), metric.counts().entered
        (0.667, 0.333, 3)
    """

    is_share = True
    needs = QUANTITIES | {"logits": "logits({on})", "input_logits": "logits(image)"}
    quantity = "judge"
    reasons = (INPUT_NOT_FINITE, ALREADY_TARGET, NOT_FLIPPED)

    def __init__(self, target: int = 1, threshold: float | None = None) -> None:
        super().__init__(target)
        self.threshold = threshold

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return whether the judge assigns the counterfactual and the input to the target class: (B, 3).

        Takes the judge's logits (B, K) or quality (B,) for both, and the classifier's ``logits`` and ``input_logits``
        (B, K).
        """
        logits, input_logits = kwargs.get("logits"), kwargs.get("input_logits")
        if y is None or logits is None or input_logits is None:
            raise ValueError("OracleAgreement needs logits and input_logits of the classifier, and y of the judge.")
        after, before = self._decision(y_pred), self._decision(y)
        if len(after) != len(logits):
            raise ValueError(f"The judge decided on {len(after)} cases, but the classifier on {len(logits)}.")
        left_out = (*left_out_inputs(input_logits, self.target), ~calls_target(logits, self.target))
        return self.entry(torch.stack([after, before], dim=1), *left_out)

    def _decision(self, output: Tensor) -> Tensor:
        if self.threshold is not None:
            if output.numel() != len(output):
                raise ValueError(
                    f"threshold={self.threshold} is for a quality (B,), but the judge returned {tuple(output.shape)}."
                )
            return output.reshape(-1) >= self.threshold
        if output.ndim != 2 or not 0 <= self.target < output.shape[1]:
            raise ValueError(
                f"The judge's logits must be (B, K) with K > target={self.target}, got {tuple(output.shape)}; a judge "
                "that returns a quality needs a threshold."
            )
        return calls_target(output, self.target)

    def reference(self, **options: Any) -> Summary:
        """Return the result for unchanged inputs; ``options`` are those of ``summarize``."""
        return summarize(self._column(2), share=True, **options)


METRICS.add("oracle_agreement", "fraction of flips that an independent judge confirms", OracleAgreement)
