# SPDX-License-Identifier: Apache-2.0
"""Quality as judged by an independent oracle: overall, by structure, and relative to the quality of the input.

Higher always means a better plane: in the phantoms' concepts, the posterior fossa's score is for its ABSENCE.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from medcf.metrics.base import QUANTITIES
from medcf.metrics.exclusions import ExclusionMetric, Summary, summarize
from medcf.registry import METRICS

__all__ = ["MeanQualityDifference", "QualityBin", "StructureQualityDifference", "quality_by_input"]

NOT_FINITE = "a score is not finite"


@dataclass(frozen=True)
class QualityBin(Summary):
    """The quality difference of cases whose inputs have similar quality.

    Attributes:
        low: lower edge of the input's quality, included.
        high: upper edge, excluded except for the last bin.
    """

    low: float
    high: float


def quality_by_input(
    before: Tensor, difference: Tensor, bins: int | Sequence[float] = 5, **options: Any
) -> list[QualityBin]:
    """Average the quality difference over inputs of similar quality (Diff-ICE, Figure 4).

    A score in [0, 1] can gain at most 1 - QS, and a method that gives every input the same quality falls here with
    slope -1: a falling line alone does not show skill. Compare with the controls.

    Args:
        before: quality of the inputs in [0, 1], (N,).
        difference: quality of the counterfactuals minus quality of the inputs, (N,); NaN does not count.
        bins: number of bins with equal width in [0, 1], or their ascending edges.
        options: of :func:`medcf.metrics.exclusions.summarize`: ``groups``, ``confidence``, ``num_resamples``, ``seed``.

    Returns:
        One row per bin, including empty bins.

    Raises:
        ValueError: if there are no bins, or edges do not ascend.

    Example:
        >>> rows = quality_by_input(torch.tensor([0.1, 0.2, 1.0]), torch.tensor([0.5, 0.25, 0.0]), bins=2)
        >>> [(row.low, row.high, row.count, row.mean) for row in rows]
        [(0.0, 0.5, 2, 0.375), (0.5, 1.0, 1, 0.0)]
    """
    edges = torch.linspace(0, 1, bins + 1).tolist() if isinstance(bins, int) else [float(edge) for edge in bins]
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"bins={bins} must be a positive number of bins or at least two ascending edges.")
    rows = []
    for low, high in pairwise(edges):
        inside = (before >= low) & ((before <= high) if high == edges[-1] else (before < high))
        result = summarize(torch.where(inside, difference, torch.nan), **options)
        rows.append(QualityBin(**vars(result), low=low, high=high))
    return rows


class MeanQualityDifference(ExclusionMetric):
    """MQD: mean gain in an oracle's quality score for inputs that the oracle does not call good.

    MQD = 1/N sum 1[QS(x) < threshold] (QS(x_c) - QS(x)), where N counts all inputs, including good ones: a test set
    with more good inputs has a smaller MQD. ``mean_difference`` has no indicator. Source: Pegios et al., Diff-ICE,
    section 4.

    Args:
        threshold: quality from which the oracle calls an image good. It belongs to the oracle: 0.5 for the paper's;
            with the wrong one, poor inputs do not count, or good ones do.

    Example:
        >>> metric = MeanQualityDifference()
        >>> _ = metric(torch.tensor([0.75, 1.0]), torch.tensor([0.25, 0.75]))
        >>> metric.aggregate(), metric.mean_difference
        (0.25, 0.375)
    """

    higher_is_better = True
    needs = QUANTITIES
    quantity = "quality"
    reasons = (NOT_FINITE,)

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Pair the qualities (B,) in [0, 1] of both: (B, 4), with the term of MQD, and quality before and after."""
        if y is None:
            raise ValueError("MeanQualityDifference needs the quality of the inputs as y.")
        if y_pred.shape != y.shape or y.numel() != len(y):
            raise ValueError(
                f"MeanQualityDifference needs one score per case (B,), got {tuple(y_pred.shape)} and {tuple(y.shape)}."
            )
        after, before = y_pred.reshape(-1).float(), y.reshape(-1).float()
        gain = torch.where(before < self.threshold, after - before, 0)
        return self.entry(torch.stack([gain, before, after], dim=1), ~(after.isfinite() & before.isfinite()))

    @property
    def mean_difference(self) -> float:
        """Mean of QS(x_c) - QS(x) over all inputs."""
        return float((self._column(3) - self._column(2)).nanmean())


class StructureQualityDifference(ExclusionMetric):
    """QD by structure: gain in an oracle's score for each structure from input to counterfactual.

    QD_FP, QD_CSP and QD_TH in Diff-ICE, section 4 and Figure 4: posterior fossa (its absence), cavum septi pellucidi
    and thalami. The aggregate is the mean over structures and cases; ``by_structure`` returns them one by one.

    Args:
        names: the structures: a sequence names all K columns of the scores, a mapping selects columns.

    Raises:
        ValueError: if there is no name.

    Example:
        >>> metric = StructureQualityDifference({"TH": 0, "FP": 2})
        >>> _ = metric(torch.tensor([[0.75, 0.0, 0.25]]), torch.tensor([[0.25, 0.0, 0.5]]))
        >>> {name: row.mean for name, row in metric.by_structure().items()}
        {'TH': 0.5, 'FP': -0.25}
        >>> metric.aggregate()
        0.125
    """

    higher_is_better = True
    needs = QUANTITIES
    quantity = "concepts"
    reasons = (NOT_FINITE,)

    def __init__(self, names: Sequence[str] | Mapping[str, int]) -> None:
        super().__init__()
        self.sequence = not isinstance(names, Mapping)
        self.names = dict(names) if isinstance(names, Mapping) else {name: i for i, name in enumerate(names)}
        if not self.names:
            raise ValueError("StructureQualityDifference needs the name of at least one structure.")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Pair the scores (B, K) in [0, 1] of both: (B, 2 + 2 S), with their mean gain, S scores before and S gains."""
        if y is None:
            raise ValueError("StructureQualityDifference needs the scores of the inputs as y.")
        highest = max(self.names.values())
        if y_pred.ndim != 2 or y_pred.shape != y.shape or not 0 <= min(self.names.values()) <= highest < y.shape[1]:
            raise ValueError(
                f"StructureQualityDifference with columns {self.names} needs scores (B, K) with K > {highest}, got "
                f"{tuple(y_pred.shape)} and {tuple(y.shape)}."
            )
        if self.sequence and y.shape[1] != len(self.names):
            raise ValueError(f"{len(self.names)} names for {y.shape[1]} scores: name all, or map names to columns.")
        chosen = list(self.names.values())
        before, after = y[:, chosen].float(), y_pred[:, chosen].float()
        difference = after - before
        columns = torch.cat([difference.mean(1, keepdim=True), before, difference], dim=1)
        return self.entry(columns, ~columns.isfinite().all(1))

    def _scores(self, name: str) -> tuple[Tensor, Tensor]:
        place = list(self.names).index(name)
        return self._column(2 + place), self._column(2 + len(self.names) + place)

    def by_structure(self, *, groups: Sequence[Hashable] | None = None, **options: Any) -> dict[str, Summary]:
        """Return mean and interval for each structure; ``options`` are those of ``summarize``."""
        return {name: summarize(self._scores(name)[1], groups=groups, **options) for name in self.names}

    def quality_by_input(self, bins: int | Sequence[float] = 5, **options: Any) -> dict[str, list[QualityBin]]:
        """Return each structure's difference by its score in the input, see :func:`quality_by_input`."""
        return {name: quality_by_input(*self._scores(name), bins, **options) for name in self.names}


METRICS.add("mean_quality_difference", "gain in an oracle's quality score", MeanQualityDifference)
METRICS.add("structure_quality_difference", "gain in an oracle's score by structure", StructureQualityDifference)
