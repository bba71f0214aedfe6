# SPDX-License-Identifier: Apache-2.0
"""Volumes of structures by a segmentation network, and how well their change follows the true change.

A counterfactual that flips a classifier may do so by a pattern that no anatomy shows. If the same subject's true volume
in the other class is known, this can be quantified: how much of the true change did it make, and did it make more where
more was due?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from numpy.typing import NDArray
from torch import Tensor, nn

from medcf.metrics.base import CaseMetric, collected
from medcf.metrics.bootstrap import interval_of_entered
from medcf.registry import METRICS
from medcf.runtime.choices import check_choice

__all__ = ["SegmentedVolumes", "Statistic", "VolumeChange"]

Statistic = Literal["slope", "gain", "correlation", "bias", "error"]


class SegmentedVolumes(nn.Module):
    """Measure structures in images: the sum of each label's probability over the voxels, times the voxel volume.

    It uses probabilities rather than decisions, so a structure of few voxels changes in steps smaller than a voxel, and
    a half-filled voxel counts by half.

    Args:
        segmenter: images (B, C, *spatial) to class scores (B, K, *spatial); it is set to eval mode.
        spacing: voxel spacing in mm, one number or one per axis.
        labels: labels to measure, in the order of the result, or a mapping from names to labels. None: all except
            background 0.

    Example:
        >>> segmenter = torch.nn.Conv3d(1, 2, 1)  # label 1 is where the image is above 0
        >>> _ = torch.nn.init.zeros_(segmenter.bias)
        >>> _ = segmenter.weight.data.copy_(torch.tensor([0.0, 100.0]).reshape(2, 1, 1, 1, 1))
        >>> image = torch.full((1, 1, 4, 4, 4), -1.0)
        >>> image[..., 0] = 1.0
        >>> SegmentedVolumes(segmenter, spacing=(1.0, 1.0, 4.0))(image)  # 16 voxels of 4 mm³
        tensor([[64.]], dtype=torch.float64)
    """

    def __init__(
        self,
        segmenter: nn.Module,
        spacing: float | Sequence[float],
        labels: Mapping[str, int] | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.segmenter = segmenter.eval()
        self.spacing = spacing
        chosen = labels.values() if isinstance(labels, Mapping) else labels
        self.labels = None if chosen is None else tuple(int(label) for label in chosen)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Measure the volumes.

        Args:
            image: (B, C, *spatial), in the range the segmenter expects.

        Returns:
            Volumes (B, number of labels) in mm³ (mm² in 2D), float64.

        Raises:
            ValueError: if the segmenter lacks a label, or a spacing is not positive.
        """
        steps = [float(step) for step in ensure_tuple_rep(self.spacing, image.ndim - 2)]
        if not min(steps) > 0:
            raise ValueError(f"spacing={self.spacing} must be positive: give the voxel size in mm.")
        scores = self.segmenter(image)
        labels = range(1, scores.shape[1]) if self.labels is None else self.labels
        if not all(0 <= label < scores.shape[1] for label in labels):
            raise ValueError(f"labels={tuple(labels)}: the segmenter has the labels 0 to {scores.shape[1] - 1}.")
        return math.prod(steps) * scores.float().softmax(1)[:, list(labels)].flatten(2).double().sum(2)


class VolumeChange(CaseMetric):
    """Measured change of a volume (counterfactual minus input) against the true change of the same subject.

    ``aggregate`` is the mean absolute error of the change, or the selected statistic:

    - ``"slope"``: least squares of the measured on the true change, WITH intercept (``scipy.stats.linregress(true,
      measured)``). 1: twice the true change gives twice the measured one; 0: unrelated, as for unchanged inputs. Over
      both directions together it mainly reflects the difference of their means; within one direction the true changes
      vary little, and the slope only shows whether subjects get their own share.
    - ``"gain"``: the same through the origin, sum of measured x true over sum of true²: the fraction of the true change
      that was made, 1 at best. Use this within one direction.
    - ``"correlation"``: Pearson's r; NaN if either is constant.
    - ``"bias"``: mean of measured minus true; ``"error"``: mean absolute difference.

    Cases with a non-finite change are left out. ``target``, the class that each counterfactual should have, splits all
    statistics by direction.

    Args:
        statistic: the one that ``aggregate`` and ``interval`` return.
        direction: use only cases with this target; None uses all.

    Example:
        >>> metric = VolumeChange()
        >>> true = torch.tensor([10.0, 14.0, -9.0, -13.0])
        >>> _ = metric(0.5 * true, true, target=torch.tensor([1, 1, 0, 0]))
        >>> metric.of("slope"), metric.of("gain", target=1), metric.of("bias", target=0), metric.aggregate()
        (0.5, 0.5, 5.5, 5.75)
    """

    higher_is_better = False
    needs: ClassVar = {
        "y_pred": "volume_change({on}, {of})",
        "y": "true_volume_change({of})",
        "target": "target",
    }
    left_out_reason = "measured or true change is not finite"

    def __init__(self, statistic: Statistic = "error", direction: int | None = None) -> None:
        super().__init__()
        self.statistic: Statistic = statistic
        self.direction = direction

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Collect the measured changes, the true ones ``y`` in the same unit, and optionally ``target``, all (B,)."""
        target = kwargs.get("target")
        if y is None or y_pred.ndim != 1 or y.shape != y_pred.shape:
            raise ValueError("VolumeChange needs the measured changes (B,), and the true ones as y, of the same shape.")
        target = torch.full_like(y_pred, torch.nan) if target is None else torch.as_tensor(target)
        if target.shape != y_pred.shape:
            raise ValueError(f"target has shape {tuple(target.shape)}, the changes have {tuple(y_pred.shape)}.")
        return torch.stack([value.double().cpu() for value in (y_pred, y, target)], dim=1)

    def per_case(self) -> Tensor:
        """Return the absolute error of each case's change (N,); NaN if it is left out."""
        found, true, _ = collected(self).unbind(1)
        error: Tensor = (found - true).abs()
        return error.masked_fill(~error.isfinite(), torch.nan)

    def aggregate(self) -> float:
        """Return the statistic over the cases that count."""
        return self.of(self.statistic, target=self.direction)

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        return self.interval_of(self.statistic, target=self.direction, groups=groups, **options)

    def targets(self) -> list[int]:
        """Return the target classes of the counterfactuals, sorted; empty if none were given."""
        column = collected(self)[:, 2]
        return sorted({int(value) for value in column[column.isfinite()]})

    def of(self, statistic: Statistic, *, target: int | None = None) -> float:
        """Return a statistic over all cases, or over one direction.

        Args:
            statistic: "slope", "gain", "correlation", "bias" or "error".
            target: only cases with this target.

        Returns:
            Its value; NaN if it is undefined.

        Raises:
            ValueError: if the statistic or target is unknown.
        """
        function = _statistic(statistic)
        found, true, kept = self._kept(target)
        return function(found[kept], true[kept])

    def summary_in_ml(self) -> dict[str, float]:
        """Return slope and r for both directions, the gain for each, and the mean absolute error, for changes in ml."""
        both = {name: self.of(name) for name in ("slope", "correlation")}
        gains = {f"gain_to_{target}": self.of("gain", target=target) for target in self.targets()}
        return {**both, **gains, "mean_absolute_error_ml": self.of("error")}

    def interval_of(
        self,
        statistic: Statistic,
        *,
        target: int | None = None,
        groups: Sequence[Hashable] | None = None,
        **options: Any,
    ) -> tuple[float, float]:
        """Return the bootstrap interval of a statistic.

        Args:
            statistic: see `of`.
            target: only cases with this target.
            groups: subject of each case, including those left out or with another target; whole subjects are resampled.
            options: ``confidence``, ``num_resamples`` and ``seed`` of the bootstrap.

        Returns:
            Lower and upper ends; NaN if no resample has a value.
        """
        function = _statistic(statistic)
        found, true, kept = self._kept(target)
        return interval_of_entered(function, found, true, entered=kept, groups=groups, **options)

    def _kept(self, target: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return the measured and true changes of all cases, and which of them count."""
        found, true, targets = collected(self).numpy().T
        kept = np.isfinite(found) & np.isfinite(true)
        if target is not None:
            if target not in self.targets():
                raise ValueError(f"target={target} is unknown; cases were given with the targets {self.targets()}.")
            kept &= targets == target
        return found, true, kept


def _statistic(name: str) -> Callable[[NDArray[np.float64], NDArray[np.float64]], float]:
    check_choice("statistic", name, Statistic)
    return _STATISTICS[name]


def _slope(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    return math.nan if _constant(true) else _gain(found, true - true.mean())


def _gain(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    return _ratio(float(true @ found), float(true @ true))


def _correlation(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    if _constant(found) or _constant(true):
        return math.nan
    first, second = found - found.mean(), true - true.mean()
    return _ratio(float(first @ second), math.sqrt(float(first @ first) * float(second @ second)))


def _constant(values: NDArray[np.float64]) -> bool:
    """Compare the values themselves: rounding of their mean would leave a nonzero denominator."""
    return len(values) == 0 or bool((values == values[0]).all())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


_STATISTICS: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {
    "slope": _slope,
    "gain": _gain,
    "correlation": _correlation,
    "bias": lambda found, true: float((found - true).mean()) if len(found) else math.nan,
    "error": lambda found, true: float(np.abs(found - true).mean()) if len(found) else math.nan,
}

METRICS.add("volume_change", "Change of a structure's volume against the true change", VolumeChange)
