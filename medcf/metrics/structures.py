# SPDX-License-Identifier: Apache-2.0
"""Ground truth of structures: are they where the same subject's true image of the target class has them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, compute_dice
from torch import Tensor

from medcf.registry import METRICS

__all__ = ["StructureDice"]


class StructureDice(CumulativeIterationMetric):
    """Dice of named structures against a paired truth.

    An absent structure counts: nothing found where nothing is gives 1, anything found there gives 0 (MONAI's
    ``compute_dice`` with ``ignore_empty=False``).

    Args:
        structures: label of each structure, by name.
        min_pixels: a smaller find is taken for nothing, in both.

    Example:
        >>> metric = StructureDice({"cavum": 3})
        >>> truth = torch.tensor([[[[3, 3, 0, 0]]]])
        >>> _ = metric(torch.tensor([[[[3, 0, 0, 0]]]]), truth)
        >>> round(metric.aggregate()["cavum"], 3)
        0.667
    """

    higher_is_better = True

    def __init__(self, structures: Mapping[str, int], min_pixels: int = 0) -> None:
        super().__init__()
        self.structures = dict(structures)
        self.min_pixels = min_pixels

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare label maps.

        Args:
            y_pred: labels found in the counterfactuals, (B, 1, *spatial), integers.
            y: labels of the paired truth, same shape.
            kwargs: not used.

        Returns:
            Dice, (B, number of structures).
        """
        if y is None:
            raise ValueError("StructureDice needs the truth's labels as y.")
        return compute_dice(self._masks(y_pred), self._masks(y), ignore_empty=False)

    def _masks(self, labels: Tensor) -> Tensor:
        masks = torch.cat([labels == value for value in self.structures.values()], dim=1)
        large = masks.flatten(2).sum(2) >= self.min_pixels
        return (masks & large[(...,) + (None,) * (masks.ndim - 2)]).float()

    def aggregate(self) -> dict[str, float]:
        """Return the mean Dice of each structure."""
        return dict(zip(self.structures, self.get_buffer().mean(0).tolist(), strict=True))


METRICS.add("structure_dice", "Dice of structures against the paired truth", StructureDice)
