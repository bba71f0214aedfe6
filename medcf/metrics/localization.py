# SPDX-License-Identifier: Apache-2.0
"""Does a difference map find what truly changes? Average precision, best IoU and the pointing game.

A map for a region of a few percent of the image scores low on all of these, and one for most of the image scores high.
So every metric also gives its ``chance`` level, the value of an uninformative map.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import average_precision_score
from torch import Tensor

from medcf.metrics.base import CaseMetric
from medcf.registry import METRICS

__all__ = ["ChangeAUPRC", "ChangeIoU", "ChangeLocalization", "PointingGame"]


class ChangeLocalization(CaseMetric):
    """The common part of the localization metrics: checks, organ mask, and chance level.

    Called with maps (larger means "more changed", in any unit), Boolean true changes and, optionally, ``mask``; nothing
    outside the mask counts. Cases without a true change (inside the mask) are left out.
    """

    higher_is_better = True
    left_out_reason = "no true change"

    def _compute_tensor(
        self, y_pred: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Compare non-negative maps with true changes within the organ, all (B, 1, *spatial): value and chance."""
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} needs the true change as y.")
        if y_pred.shape != y.shape or y_pred.ndim < 3 or y_pred.shape[1] != 1:
            raise ValueError(
                f"{name} needs maps and truth of one shape (B, 1, *spatial), got {tuple(y_pred.shape)} and "
                f"{tuple(y.shape)}."
            )
        if mask is not None and mask.shape != y.shape:
            raise ValueError(f"{name} got a mask of shape {tuple(mask.shape)} for maps of shape {tuple(y.shape)}.")
        scores = y_pred.as_subclass(Tensor).double()
        if not bool((scores >= 0).all()):
            raise ValueError(f"{name} needs maps without NaN or negative values: take the absolute difference.")
        truth = y.as_subclass(Tensor) != 0
        inside = torch.ones_like(truth) if mask is None else mask.as_subclass(Tensor) != 0
        rows = []
        for case in range(len(scores)):
            true, kept = truth[case, 0] & inside[case, 0], inside[case, 0]
            rows.append(self._score(scores[case, 0], true, kept) if bool(true.any()) else (float("nan"),) * 2)
        return torch.tensor(rows, dtype=torch.float64, device=scores.device)

    @abstractmethod
    def _score(self, scores: Tensor, truth: Tensor, inside: Tensor) -> tuple[float, float]:
        """Return the value and the chance level of one case; all arguments are (*spatial)."""

    def per_case(self) -> Tensor:
        """Return one value per case (N,); NaN if there is no true change."""
        return self._column(0)

    def chance_per_case(self) -> Tensor:
        """Return the value of an uninformative map per case (N,); NaN if there is no true change."""
        return self._column(1)

    def chance(self) -> float:
        """Return the mean chance level over the cases that count."""
        return float(self.chance_per_case().nanmean())


class ChangeAUPRC(ChangeLocalization):
    """Average precision over the pixels of each case, the area under the precision-recall curve as a step sum.

    Its chance level, reached by a constant or random map, is the fraction of pixels that truly change.

    Example:
        >>> truth = torch.tensor([[[[True, False, False, False]]]])
        >>> metric = ChangeAUPRC()
        >>> _ = metric(torch.tensor([[[[0.2, 0.9, 0.1, 0.0]]]]), truth)
        >>> metric.aggregate(), metric.chance()
        (0.5, 0.25)
    """

    def _score(self, scores: Tensor, truth: Tensor, inside: Tensor) -> tuple[float, float]:
        true = truth[inside].cpu()
        return float(average_precision_score(true, scores[inside].cpu())), float(true.double().mean())


class ChangeIoU(ChangeLocalization):
    """Intersection over union of each case at its best threshold, found exactly among all values of the map.

    The threshold is chosen using the truth, so the value is an upper bound on what a user can achieve. Selecting all
    pixels is one of the choices: its IoU, the fraction of pixels that truly change, is the chance level and the
    minimum.

    Example:
        >>> truth = torch.tensor([[[[True, True, False, False]]]])
        >>> metric = ChangeIoU()
        >>> _ = metric(torch.tensor([[[[0.9, 0.2, 0.3, 0.1]]]]), truth)
        >>> round(metric.aggregate(), 3), metric.chance()
        (0.667, 0.5)
    """

    def _score(self, scores: Tensor, truth: Tensor, inside: Tensor) -> tuple[float, float]:
        ordered, order = scores[inside].sort(descending=True)
        last = torch.cat([ordered[1:] != ordered[:-1], truth.new_ones(1)])  # the last of several equal values
        found = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=scores.device)
        hits = truth[inside][order].double().cumsum(0)
        iou = hits / (hits[-1] + found - hits)
        return float(iou[last].max()), float(hits[-1] / found[-1])


class PointingGame(ChangeLocalization):
    """Whether the maximum of the map lies in the true change (Zhang et al., "Top-down neural attention", 2018).

    Several equal maxima share the score, so a constant map gets the chance level: the fraction of pixels that would be
    hits.

    Args:
        tolerance: a maximum up to this many pixels away from the true change is also a hit (Euclidean distance).

    Example:
        >>> truth = torch.tensor([[[[True, False, False, False]]]])
        >>> metric = PointingGame()
        >>> _ = metric(torch.tensor([[[[0.9, 0.2, 0.3, 0.1]]]]), truth)
        >>> metric.aggregate(), metric.chance()
        (1.0, 0.25)
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        super().__init__()
        if tolerance < 0:
            raise ValueError(f"tolerance={tolerance} is a distance in pixels: use 0 or more.")
        self.tolerance = float(tolerance)

    def _score(self, scores: Tensor, truth: Tensor, inside: Tensor) -> tuple[float, float]:
        if self.tolerance:
            distance = np.asarray(distance_transform_edt(~truth.cpu().numpy()))
            truth = torch.from_numpy(distance <= self.tolerance).to(truth.device)
        within = truth[inside].double()
        peaks = scores[inside] == scores[inside].max()
        return float(within[peaks].mean()), float(within.mean())


METRICS.add("change_auprc", "Average precision of a map for the true change", ChangeAUPRC)
METRICS.add("change_iou", "IoU of a map with the true change at the best threshold", ChangeIoU)
METRICS.add("pointing_game", "Whether a map's maximum lies in the true change", PointingGame)
