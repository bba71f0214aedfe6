# SPDX-License-Identifier: Apache-2.0
"""Identity: is the counterfactual still an image of the same subject?"""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from medcf.registry import METRICS

__all__ = ["ReIdentification", "pooled_pixels"]


class ReIdentification(CumulativeIterationMetric):
    """Rank-k re-identification: is an input of the same subject among the k most similar to the counterfactual?

    Queries are the counterfactuals, the gallery are all inputs; similarity is the cosine of feature vectors.
    A memorized or averaged counterfactual resembles no input more than another and falls to chance, k over the number
    of subjects. Source: Pegios et al., Diff-ICE, Table 2 (k = 3). ``mean_similarity`` is the mean cosine of each
    counterfactual to its own input (SonoSim there).

    Args:
        k: how many of the most similar inputs are looked at.

    Example:
        >>> metric = ReIdentification(k=1)
        >>> inputs = torch.eye(3)
        >>> _ = metric(inputs[[0, 1, 1]], inputs, subject=torch.tensor([10, 11, 12]))
        >>> round(metric.aggregate(), 3)
        0.667
    """

    higher_is_better = True

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.mean_similarity = float("nan")
        self.hits: Tensor = torch.empty(0, dtype=torch.bool)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> list[Tensor]:
        """Collect feature vectors.

        Args:
            y_pred: features of the counterfactuals, (B, F).
            y: features of their inputs, (B, F).
            kwargs: ``subject``, (B,): who is on the image.

        Returns:
            The three, as buffers.
        """
        subject = kwargs.get("subject")
        if y is None or subject is None:
            raise ValueError("ReIdentification needs the inputs' features as y, and subject.")
        return [y_pred, y, subject]

    def aggregate(self) -> float:
        """Return the share of counterfactuals that are re-identified."""
        queries, gallery, subject = self.get_buffer()
        similarity = normalize(queries, dim=1) @ normalize(gallery, dim=1).T
        self.mean_similarity = float(similarity.diagonal().mean())
        nearest = similarity.topk(min(self.k, len(gallery)), dim=1).indices
        self.hits = (subject[nearest] == subject[:, None]).any(1)
        return float(self.hits.float().mean())


def pooled_pixels(images: Tensor, size: tuple[int, int] = (16, 20)) -> Tensor:
    """Describe images by their coarse appearance: the correlation of two such descriptors is their cosine.

    A descriptor that no network was trained for: outline, position and surroundings of the organ, without speckle.

    Args:
        images: (B, 1, H, W).
        size: rows and columns to average to.

    Returns:
        (B, size[0] * size[1]), each of mean 0.
    """
    pooled = adaptive_avg_pool2d(images, size).flatten(1)
    return pooled - pooled.mean(1, keepdim=True)


METRICS.add("re_identification", "rank-k re-identification of the subject", ReIdentification)
