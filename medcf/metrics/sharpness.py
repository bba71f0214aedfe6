# SPDX-License-Identifier: Apache-2.0
"""Is a counterfactual as sharp as the truth? A mean of plausible images is close to all of them, and blurred."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from medcf.metrics.base import CaseMetric, collected
from medcf.metrics.bootstrap import interval_of_entered
from medcf.metrics.truth import blurred, inside, ratio_of_sums
from medcf.registry import METRICS

__all__ = ["Sharpness"]


class Sharpness(CaseMetric):
    """Power of what is finer than one blur: |I - G I|² of the counterfactual over that of the truth.

    G is a Gaussian blur with a standard deviation of ``sigma`` pixels. 1 is as sharp as the truth, 0 is smooth; above 1
    there is more fine structure than in the truth, such as noise. Where no truth exists, compare with the input.

    Args:
        sigma: standard deviation of the blur in pixels.

    Example:
        >>> truth = torch.randn(1, 1, 32, 32)
        >>> metric = Sharpness()
        >>> _ = metric(0.5 * truth, truth)
        >>> round(metric.aggregate(), 6)
        0.25
    """

    higher_is_better = True
    left_out_reason = "the truth has no fine structure"
    needs: ClassVar[Mapping[str, str]] = {"y_pred": "{on}", "y": "image_true"}

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma={sigma} is a standard deviation in pixels: use a positive number.")
        self.sigma = float(sigma)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Measure images (B, C, *spatial) and the truth ``y``, within ``mask`` if given: their fine power, (B, 2)."""
        if y is None or y.shape != y_pred.shape or y.ndim < 4:
            shape = None if y is None else tuple(y.shape)
            raise ValueError(
                f"Sharpness needs images of one shape (B, C, *spatial), got {tuple(y_pred.shape)}, {shape}."
            )
        powers = []
        for each in (y_pred, y):
            image = each.as_subclass(Tensor).float()
            fine = inside(image - blurred(image, self.sigma), kwargs.get("mask"))
            powers.append(fine.square().flatten(1).sum(1))
        return torch.stack(powers, dim=1)

    def per_case(self) -> Tensor:
        """Return the ratio of each case (N,); NaN if the truth has no fine structure."""
        found, true = collected(self).double().unbind(1)
        return torch.where(true > 0, found / true, torch.nan)

    def aggregate(self) -> float:
        """Return the power of all counterfactuals over that of all truths."""
        return ratio_of_sums(*collected(self).double().cpu().numpy().T)

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        columns = collected(self).double().cpu().numpy().T
        return interval_of_entered(ratio_of_sums, *columns, entered=columns[1] > 0, groups=groups, **options)


METRICS.add("sharpness", "power finer than one blur pixel, over that of the truth", Sharpness)
