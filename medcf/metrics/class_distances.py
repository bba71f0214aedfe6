# SPDX-License-Identifier: Apache-2.0
"""Do counterfactuals look like real images of their target class, and unlike those of the other class?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from medcf.metrics.base import QUANTITIES, collected
from medcf.metrics.frechet import FrechetDistance
from medcf.registry import METRICS

__all__ = ["ClassDistances"]


class ClassDistances(CumulativeIterationMetric):
    """Fréchet distances from each class's real images to those generated toward each class, and between real classes.

    Source: the cross-FIDs in ControlCG. The real images are the inputs.

    Args:
        class_names: names of the classes, in the order of their indices.

    Example:
        >>> import torch
        >>> inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> label = torch.arange(40) % 2
        >>> metric = ClassDistances(["CN", "AD"])
        >>> _ = metric(inputs.flip(0), inputs, label=label, target=1 - label)  # made from the other class
        >>> round(metric.aggregate()["real_AD_to_generated_AD"]["distance"], 6)
        0.0
    """

    higher_is_better = False
    needs = QUANTITIES | {"label": "label", "target": "target"}
    quantity = "features"

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> list[Tensor]:
        """Collect features (B, F) of counterfactuals and inputs, with ``target`` and ``label`` (B,), their classes."""
        if y is None or kwargs.get("label") is None or kwargs.get("target") is None:
            raise ValueError("ClassDistances needs the inputs' features as y, label and target.")
        return [y_pred, y, kwargs["label"], kwargs["target"]]

    def aggregate(self) -> dict[str, Any]:
        """Return the number of features, and each distance with its numbers of images; None for fewer than two."""
        generated, real, label, target = collected(self)
        figures: dict[str, Any] = {"features": int(real.shape[1])}
        present = [name for index, name in enumerate(self.class_names) if bool((label == index).any())]
        for name in present:
            reference = real[label == self.class_names.index(name)]
            for index, made in enumerate(self.class_names):
                figures[f"real_{name}_to_generated_{made}"] = _distance(generated[target == index], reference)
                if made in present and made != name:
                    figures[f"real_{name}_to_real_{made}"] = _distance(real[label == index], reference)
        return figures


def _distance(generated: Tensor, reference: Tensor) -> dict[str, Any] | None:
    if min(len(generated), len(reference)) < 2:
        return None
    metric = FrechetDistance("classifier", reference=reference)
    metric(generated)
    return {"distance": metric.aggregate(), "generated": len(generated), "reference": len(reference)}


METRICS.add("class_distances", "Fréchet distances between real and generated images of the classes", ClassDistances)
