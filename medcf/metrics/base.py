# SPDX-License-Identifier: Apache-2.0
"""The common part of all metrics with one value per case: the mean, its interval, and which cases count."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from medcf.metrics.bootstrap import interval_of_entered
from medcf.registry import METRICS

__all__ = ["IMAGES", "QUANTITIES", "CaseMetric", "Counts", "Mean", "collected"]

#: What most metrics are called with, in the terms of `medcf.evaluation.evidence`: the images with their inputs, or a
#: quantity computed on both. ``{on}`` is the measured images; ``{of}`` is the metric's ``quantity`` or another one.
IMAGES = {"y_pred": "{on}", "y": "image"}
QUANTITIES = {"y_pred": "{of}({on})", "y": "{of}(image)"}


@dataclass(frozen=True)
class Counts:
    """Number of cases behind a figure.

    Attributes:
        entered: cases with a value.
        left_out: number of cases without a value, by reason.
        reference: number of images in the reference set, for distances between sets; otherwise 0.
    """

    entered: int
    left_out: dict[str, int] = field(default_factory=dict)
    reference: int = 0


def collected(metric: CumulativeIterationMetric) -> Any:
    """Return what a metric has collected: a tensor with one row per case, or a list of tensors."""
    buffer = metric.get_buffer()
    if buffer is None:
        raise ValueError(f"{type(metric).__name__} was aggregated before it saw a case.")
    return buffer


class CaseMetric(CumulativeIterationMetric):
    """A metric whose aggregate is the mean of one value per case; NaN marks a case that does not count.

    Subclasses compute the values in ``_compute_tensor``, returning (B,) or (B, columns), and reduce columns in
    ``per_case``. ``monai.handlers.IgniteMetricHandler`` turns any of them into an Ignite handler.
    """

    #: Whether a larger aggregate means a better counterfactual.
    higher_is_better: bool
    #: Whether the values are 0 or 1, so that the aggregate is a fraction of the cases.
    is_share = False
    #: Why a case has no value; used by ``counts``.
    left_out_reason = "no value"
    #: What an evaluation calls it with, see `IMAGES`, and the default for ``{of}``.
    needs: ClassVar[Mapping[str, str]] = IMAGES
    quantity = ""

    def _column(self, index: int) -> Tensor:
        return collected(self)[:, index].double()

    def per_case(self) -> Tensor:
        """Return one value per case (N,); NaN if the case does not count."""
        values = collected(self).double()
        return values.reshape(len(values))

    def aggregate(self) -> float:
        """Return the mean over the cases that count; NaN if there are none."""
        values = self.per_case()
        return float(values[~values.isnan()].mean())

    def interval(
        self,
        *,
        groups: Sequence[Hashable] | None = None,
        confidence: float = 0.95,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> tuple[float, float]:
        """Return the confidence interval of the aggregate, see `medcf.metrics.bootstrap_interval`.

        Args:
            groups: subject of each case, including those without a value; whole subjects are resampled.
            confidence: coverage of the interval.
            num_resamples: number of resamples.
            seed: seed for the resampling.

        Returns:
            Lower and upper ends; NaN if no case counts, or if fewer than five groups do and it is not a share.

        Raises:
            ValueError: if groups and cases differ in length.
        """
        return self._interval(groups, confidence=confidence, num_resamples=num_resamples, seed=seed)

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        """Compute the interval; override it if the aggregate is not the mean of ``per_case``."""
        values = self.per_case().cpu().numpy()
        entered = ~np.isnan(values)
        cases = values.astype(bool) if self.is_share else values
        return interval_of_entered(np.mean, cases, entered=entered, groups=groups, **options)

    def counts(self) -> Counts:
        """Return how many cases count, and how many do not and why."""
        left_out = int(torch.isnan(self.per_case()).sum())
        return Counts(len(self.per_case()) - left_out, {self.left_out_reason: left_out} if left_out else {})


class Mean(CaseMetric):
    """Mean of given values, such as confidences or Booleans.

    Example:
        >>> metric = Mean()
        >>> _ = metric(torch.tensor([True, False]))
        >>> metric.aggregate()
        0.5
    """

    higher_is_better = True
    needs: ClassVar[Mapping[str, str]] = {"y_pred": "{of}"}

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Collect values (B,), or (B, K) for `by_column`."""
        self.is_share = y_pred.dtype == torch.bool
        return y_pred.double()

    def by_column(self) -> list[float]:
        """Return the mean of each of K columns."""
        return collected(self).nanmean(0).tolist()


METRICS.add("mean", "mean of given values", Mean)
