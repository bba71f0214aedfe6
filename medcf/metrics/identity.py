# SPDX-License-Identifier: Apache-2.0
"""Identity: does the counterfactual still show the same subject?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb
from typing import Any

import torch
from monai.networks.layers import Pool
from torch import Tensor
from torch.nn.functional import normalize

from medcf.metrics.base import QUANTITIES, CaseMetric, collected
from medcf.registry import METRICS

__all__ = ["ReIdentification", "pooled_pixels"]


class ReIdentification(CaseMetric):
    """Rank-k re-identification: is an input of the same subject among the k most similar to the counterfactual?

    Counterfactuals are the queries, all inputs are the gallery; similarity is the cosine of feature vectors. A
    memorized or averaged counterfactual resembles no input more than another and falls to ``chance``, which is k over
    the number of subjects if each has one input. Source: Pegios et al., Diff-ICE, Table 2 (k = 3). ``mean_similarity``
    is the mean cosine of each counterfactual to its own input (SonoSim there). After ``aggregate`` or ``per_case``,
    ``hits`` and ``similarity`` hold both case by case. ``interval`` resamples whole subjects unless ``groups`` is
    given.

    Args:
        k: number of most similar inputs to consider.

    Example:
        >>> metric = ReIdentification(k=1)
        >>> inputs = torch.eye(3)
        >>> _ = metric(inputs[[0, 1, 1]], inputs, subject=torch.tensor([10, 11, 12]))
        >>> round(metric.aggregate(), 3), round(metric.chance, 3)
        (0.667, 0.333)
    """

    higher_is_better = True
    is_share = True
    needs = QUANTITIES | {"subject": "subject_number"}
    quantity = "embedding"
    left_out_reason = "features are not finite"

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.mean_similarity = float("nan")
        self.chance = float("nan")
        self.hits: Tensor = torch.empty(0, dtype=torch.bool)
        self.similarity: Tensor = torch.empty(0)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> list[Tensor]:
        """Collect the features (B, F) of counterfactuals and inputs, and ``subject`` (B,): whose image it is."""
        subject = kwargs.get("subject")
        if y is None or subject is None:
            raise ValueError("ReIdentification needs the inputs' features as y, and subject.")
        return [y_pred, y, torch.as_tensor(subject)]

    def per_case(self) -> Tensor:
        """Return 1 for each re-identified counterfactual, 0 for the others (N,); NaN if features are not finite.

        A case with non-finite features is also removed from the gallery.
        """
        queries, gallery, subject = collected(self)
        kept = (queries.isfinite() & gallery.isfinite()).all(1)
        found, own, whose = queries[kept], gallery[kept], subject[kept]
        values = torch.full((len(kept),), torch.nan, dtype=torch.float64)
        self.hits, self.similarity = torch.zeros(len(kept), dtype=torch.bool), values.clone()
        if not len(own):
            return values
        similarity = normalize(found, dim=1) @ normalize(own, dim=1).T
        k = min(self.k, len(own))
        same = whose == whose[:, None]
        hits = same.gather(1, similarity.topk(k, dim=1).indices).any(1).cpu()
        self.chance = sum(1 - comb(len(own) - int(count), k) / comb(len(own), k) for count in same.sum(1)) / len(own)
        kept = kept.cpu()
        self.hits[kept], self.similarity[kept] = hits, similarity.diagonal().cpu().double()
        self.mean_similarity = float(similarity.diagonal().mean())
        values[kept] = hits.double()
        return values

    def _interval(self, groups: Sequence[Hashable] | None, **options: Any) -> tuple[float, float]:
        # The gallery stays complete: with repetitions or gaps it would be a different task.
        return super()._interval(collected(self)[2].tolist() if groups is None else groups, **options)


def pooled_pixels(images: Tensor, size: Sequence[int] = (16, 20)) -> Tensor:
    """Describe images by their coarse appearance: the correlation of two such descriptors is their cosine.

    A descriptor that needs no trained network: outline, position and surroundings of the organ, without speckle.

    Args:
        images: (B, 1, *spatial) in 2D or 3D.
        size: rows and columns to average to, or the three sizes for a volume.

    Returns:
        One descriptor per image, (B, product of ``size``), with mean 0.
    """
    pooled = Pool[Pool.ADAPTIVEAVG, len(size)](tuple(size))(images).flatten(1)
    return pooled - pooled.mean(1, keepdim=True)


METRICS.add("re_identification", "rank-k re-identification of the subject", ReIdentification)
