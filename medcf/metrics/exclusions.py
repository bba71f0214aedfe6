# SPDX-License-Identifier: Apache-2.0
"""Exclusions: metrics that record why each excluded case does not count, and means with intervals over the others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medcf.metrics.base import QUANTITIES, CaseMetric, Counts
from medcf.metrics.bootstrap import bootstrap_interval, groups_of_entered

__all__ = ["ExclusionMetric", "FlipMetric", "Summary", "calls_target", "check_logits", "summarize"]

#: Reasons shared by several metrics.
ALREADY_TARGET = "the input is already of the target class"
NOT_FLIPPED = "the counterfactual did not reach the target class"
INPUT_NOT_FINITE = "the input's prediction is not finite"
PRED_NOT_FINITE = "the counterfactual's prediction is not finite"


@dataclass(frozen=True)
class Summary:
    """A mean over cases.

    Attributes:
        count: number of cases with a value.
        mean: their mean; NaN if there are none.
        interval: lower and upper ends of its confidence interval; NaN with fewer than five subjects, except of shares.
    """

    count: int
    mean: float
    interval: tuple[float, float]


def summarize(
    values: Tensor,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    share: bool = False,
    **options: int,
) -> Summary:
    """Average the values of cases, with an interval.

    Args:
        values: one per case (N,); NaN if the case does not count.
        groups: subject of each case, one entry per case; whole subjects are then resampled.
        confidence: coverage of the interval.
        share: the values are 0 or 1, see `medcf.metrics.bootstrap_interval`: 32 hits of 32 give [0.89, 1].
        options: ``num_resamples`` and ``seed`` of the bootstrap.

    Returns:
        The summary.

    Raises:
        ValueError: if ``groups`` does not cover every case.

    Example:
        >>> summarize(torch.tensor([1.0, 1.0, float("nan")]), share=True, confidence=0.5)
        Summary(count=2, mean=1.0, interval=(0.5, 1.0))
    """
    found = values.double().cpu().numpy()
    entered = ~np.isnan(found)
    kept, names = found[entered], groups_of_entered(groups, entered)
    if not len(kept):
        return Summary(0, float("nan"), (float("nan"), float("nan")))
    cases = kept.astype(bool) if share else kept
    interval = bootstrap_interval(np.mean, cases, groups=names, confidence=confidence, **options)
    return Summary(len(kept), float(kept.mean()), interval)


def check_logits(name: str, target: int, y_pred: Tensor, y: Tensor | None) -> Tensor:
    """Check the logits (B, K), K >= 2, of counterfactuals and inputs for the metric ``name``; return the inputs'."""
    if y is None:
        raise ValueError(f"{name} needs the logits of the inputs as y.")
    if y_pred.ndim != 2 or y_pred.shape != y.shape or y.shape[1] < 2:
        raise ValueError(
            f"{name} needs logits (B, K) of counterfactuals and inputs with K >= 2, got {tuple(y_pred.shape)} and "
            f"{tuple(y.shape)}. A single logit z is torch.stack([0 * z, z], dim=1)."
        )
    if not 0 <= target < y.shape[1]:
        raise ValueError(f"target={target} is not one of the {y.shape[1]} classes of the logits given to {name}.")
    return y


def calls_target(logits: Tensor, target: int) -> Tensor:
    """Return the cases (B,) that the logits (B, K) assign to the target class; never cases with non-finite logits."""
    return (logits.argmax(1) == target) & logits.isfinite().all(1)


def left_out_inputs(logits: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Return the inputs that do not count (B,), by their logits: INPUT_NOT_FINITE, and ALREADY_TARGET."""
    return ~logits.isfinite().all(1), calls_target(logits, target)


class ExclusionMetric(CaseMetric):
    """A metric with one value per case that records why a case has none.

    Subclasses list their ``reasons`` and return :meth:`entry` from ``_compute_tensor``.
    """

    #: Reasons for leaving a case out, in the order in which they are checked.
    reasons: tuple[str, ...] = ()
    #: Whether the values are 0 or 1; the interval then stays honest if all cases agree.

    def entry(self, values: Tensor, *left_out: Tensor) -> Tensor:
        """Join the values of a batch with the reasons for leaving cases out.

        Args:
            values: (B,) or (B, columns); the first column is the value, the others accompany it.
            left_out: for each of ``reasons`` a Boolean (B,); the first that holds counts.

        Returns:
            (B, 1 + columns): the index of the reason (0: not left out), then the columns, NaN if the case is left out.
        """
        code = torch.zeros(len(values), device=values.device, dtype=torch.long)
        for number, mask in reversed(list(enumerate(left_out, start=1))):
            code = code.masked_fill(mask, number)
        columns = values.float().reshape(len(values), -1).masked_fill((code > 0)[:, None], float("nan"))
        return torch.cat([code[:, None].float(), columns], dim=1).as_subclass(Tensor)

    def per_case(self) -> Tensor:
        """Return one value per case (N,); NaN if the case does not count."""
        return self._column(1)

    def left_out_cases(self) -> dict[str, list[int]]:
        """Return the positions of the cases left out, by reason, in the order in which they were seen."""
        code = self._column(0).long()
        found = {reason: torch.nonzero(code == i)[:, 0].tolist() for i, reason in enumerate(self.reasons, start=1)}
        return {reason: cases for reason, cases in found.items() if cases}

    def counts(self) -> Counts:
        """Return how many cases count, and how many do not and why."""
        left_out = {reason: len(cases) for reason, cases in self.left_out_cases().items()}
        return Counts(len(self.per_case()) - sum(left_out.values()), left_out)


class FlipMetric(ExclusionMetric):
    """A metric on a classifier's logits, over inputs of a class other than the target.

    Args:
        target: index of the target class.
    """

    higher_is_better = True
    needs = QUANTITIES
    quantity = "logits"
    reasons: tuple[str, ...] = (INPUT_NOT_FINITE, ALREADY_TARGET)

    def __init__(self, target: int = 1) -> None:
        super().__init__()
        self.target = target
