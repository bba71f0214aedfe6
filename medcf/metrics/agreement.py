# SPDX-License-Identifier: Apache-2.0
"""Does a judge that had no part in making the counterfactuals see the target class, too?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from medcf.metrics.base import QUANTITIES
from medcf.metrics.reasons import (
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
from medcf.runtime.frozen import frozen

__all__ = ["OracleAgreement"]

JUDGE_ALREADY = "the judge calls the input the target class already"


class OracleAgreement(FlipMetric):
    """Share of the flips that an independent judge confirms.

    The classifier that guided the method is its own witness; the judge must share neither data, seed nor
    initialization with it. Only flips enter. A judge may call inputs the target class that the classifier does not, and
    then "confirms" a counterfactual that changed nothing for it: ``reference`` is the share of the same flips' INPUTS
    the judge calls target. The difference is what the counterfactuals achieved, and ``leave_out_agreed`` drops such
    cases.

    Two faces: with ``classifier`` and ``judge``, the metric takes images; without, it takes the judge's decisions, and
    keywords say what the classifier decided.

    Args:
        target: index of the target class.
        threshold: None if the judge gives logits (B, K); otherwise it gives a quality (B,), or a mapping with
            ``quality``, and calls target what reaches the threshold.
        leave_out_agreed: leave out flips whose input the judge calls the target class already.
        classifier: the explained classifier, images to logits (B, K).
        judge: images to what ``threshold`` says.

    Raises:
        ValueError: only one of the two networks.

    Example:
        >>> nsp, sp = [1.0, 0.0], [0.0, 1.0]
        >>> metric = OracleAgreement(target=1, threshold=0.75)
        >>> _ = metric(
        ...     torch.tensor([0.9, 0.8, 0.3, 0.9]),  # the judge's quality of the counterfactuals
        ...     torch.tensor([0.1, 0.8, 0.2, 0.1]),  # and of the inputs
        ...     logits=torch.tensor([sp, sp, sp, nsp]),
        ...     input_logits=torch.tensor([nsp, nsp, nsp, nsp]),
        ... )
        >>> round(metric.aggregate(), 3), round(metric.reference.mean, 3), metric.counts().entered
        (0.667, 0.333, 3)
    """

    is_share = True
    needs = QUANTITIES | {"logits": "logits({on})", "input_logits": "logits(image)"}
    quantity = "judge"
    reasons = (INPUT_NOT_FINITE, ALREADY_TARGET, NOT_FLIPPED, JUDGE_ALREADY)

    def __init__(
        self,
        target: int = 1,
        threshold: float | None = None,
        leave_out_agreed: bool = False,
        classifier: Callable[[Tensor], Tensor] | None = None,
        judge: Callable[[Tensor], Any] | None = None,
    ) -> None:
        super().__init__(target)
        if (classifier is None) != (judge is None):
            raise ValueError("OracleAgreement takes images if it has both classifier and judge: give both, or neither.")
        self.threshold = threshold
        self.leave_out_agreed = leave_out_agreed
        self.classifier = classifier
        self.judge = judge

    @torch.no_grad()
    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Ask the judge: (B, 3), with whether it calls the counterfactual and the input the target class.

        Takes the judge's logits (B, K) or quality (B,), with ``logits`` and ``input_logits`` (B, K), or images.
        """
        if y is None:
            raise ValueError("OracleAgreement needs the judge's decisions on the inputs (or the images) as y.")
        if self.classifier is not None and self.judge is not None:
            with frozen(self.classifier, self.judge):
                logits, input_logits = self.classifier(y_pred), self.classifier(y)
                y_pred, y = self.judge(y_pred), self.judge(y)
        elif kwargs.get("logits") is None or kwargs.get("input_logits") is None:
            raise ValueError("OracleAgreement without networks needs logits and input_logits of the classifier.")
        else:
            logits, input_logits = kwargs["logits"].detach(), kwargs["input_logits"].detach()
        after, before = self._decision(y_pred), self._decision(y)
        if len(after) != len(logits):
            raise ValueError(f"The judge decided on {len(after)} cases, the classifier on {len(logits)}.")
        not_finite, already = left_out_inputs(input_logits, self.target)
        flipped, agreed = calls_target(logits, self.target), before & self.leave_out_agreed
        return self.entry(torch.stack([after, before], dim=1), not_finite, already, ~flipped, agreed)

    def _decision(self, output: Any) -> Tensor:
        if isinstance(output, Mapping):
            output = output["quality"]
        output = output.as_subclass(Tensor)
        if self.threshold is not None:
            if output.numel() != len(output):
                raise ValueError(
                    f"threshold={self.threshold} is of a quality (B,), the judge gave {tuple(output.shape)}."
                )
            return output.reshape(-1) >= self.threshold
        if output.ndim != 2 or not 0 <= self.target < output.shape[1]:
            raise ValueError(
                f"The judge's logits must be (B, K) with K > target={self.target}, got {tuple(output.shape)}; a judge "
                "that gives a quality needs a threshold."
            )
        return calls_target(output, self.target)

    def reference_of(self, **options: Any) -> Summary:
        """Return the share of the entered flips' inputs that the judge calls the target class, with its interval."""
        return summarize(self._column(2), share=True, **options)

    @property
    def reference(self) -> Summary:
        """What an unchanged input would get here; ``reference_of`` takes the options of the interval."""
        return self.reference_of()


METRICS.add("oracle_agreement", "share of flips that an independent judge confirms", OracleAgreement)
