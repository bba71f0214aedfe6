# SPDX-License-Identifier: Apache-2.0
"""Is a structure on its true side? A method may know what a structure looks like, and not where it belongs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from medcf.metrics.exclusions import ExclusionMetric
from medcf.registry import METRICS

__all__ = ["Lateralized"]


class Lateralized(ExclusionMetric):
    """Fraction of the cases whose structure lies on its true side of the organ, among those that have it.

    The side is that of the structure's center relative to the organ's, along an image axis or along the direction in
    which the true structure lies. Guessing gives one half. Count only the cases whose input shows the side (``where``
    in an evaluation): nobody can tell it otherwise.

    Args:
        label: label of the structure.
        axis: spatial axis that separates the sides, from 0; None takes the direction from the organ's center to that of
            the true structure.
        min_pixels: a structure with fewer pixels counts as absent.

    Example:
        >>> truth, found = torch.zeros(2, 1, 1, 8, dtype=torch.long), torch.zeros(2, 1, 1, 8, dtype=torch.long)
        >>> truth[..., 6:], found[0, ..., 5:], found[1, ..., :2] = 3, 3, 3
        >>> metric = Lateralized(label=3, min_pixels=1)
        >>> _ = metric(found, truth)
        >>> metric.per_case().tolist()
        [1.0, 0.0]
    """

    higher_is_better = True
    is_share = True
    reasons = ("the truth lacks the structure", "the counterfactual lacks the structure", "the truth is in the middle")
    needs: ClassVar = {"y_pred": "{of}({on})", "y": "segmentation_true"}
    quantity = "segmentation"

    def __init__(self, label: int, axis: int | None = None, min_pixels: int = 5) -> None:
        super().__init__()
        self.label, self.axis, self.min_pixels = int(label), axis, max(int(min_pixels), 1)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the integer labels (B, 1, *spatial) of both: (B, 2) with the reason, and 1 for the right side.

        ``organ`` (B, 1, *spatial), if given, is the mask of the organ; otherwise sides are those of the image.
        """
        if y is None or y.shape != y_pred.shape:
            raise ValueError("Lateralized needs the truth's labels as y, of the shape of y_pred.")
        if self.axis is not None and not 0 <= self.axis < y.ndim - 2:
            raise ValueError(f"axis={self.axis}: label maps of shape {tuple(y.shape)} have {y.ndim - 2} spatial axes.")
        organ = kwargs.get("organ")
        middle = _center(torch.ones_like(y, dtype=torch.bool) if organ is None else organ != 0)
        true, found = (_center(labels == self.label) - middle for labels in (y, y_pred))
        absent = [(labels == self.label).flatten(1).sum(1) < self.min_pixels for labels in (y, y_pred)]
        if self.axis is not None:
            true, found = true[:, [self.axis]], found[:, [self.axis]]
        undecided = true.norm(dim=1) < 0.5  # less than half a pixel is no side
        return self.entry(((true * found).sum(1) > 0).float(), *absent, undecided)


def _center(mask: Tensor) -> Tensor:
    """Return the centers of masks (B, 1, *spatial) in pixels, (B, spatial axes); NaN for empty ones."""
    weights = mask.as_subclass(Tensor)[:, 0].double()
    total = weights.flatten(1).sum(1)
    parts = []
    for axis, size in enumerate(weights.shape[1:]):
        others = [each + 1 for each in range(weights.ndim - 1) if each != axis]
        profile = weights.sum(others)
        parts.append(profile @ torch.arange(size, dtype=torch.float64, device=weights.device) / total)
    return torch.stack(parts, dim=1)


METRICS.add("lateralized", "whether a structure lies on its true side", Lateralized)
