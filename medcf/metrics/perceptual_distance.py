# SPDX-License-Identifier: Apache-2.0
"""LPIPS-style distance on a user's own network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from medcf.metrics.base import CaseMetric
from medcf.registry import METRICS

__all__ = ["PerceptualDistance"]


class PerceptualDistance(CaseMetric):
    """Distance between the activations for a counterfactual and its input, layer by layer.

    At each location a layer's channel vectors are scaled to length 1; their squared difference is weighted by channel,
    averaged over space and summed over layers: d = sum_l mean_hw sum_c w_lc (a_lchw - b_lchw)^2. Zhang et al., "The
    unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018, eq. 1, where w is the square of the
    scales there, as in the authors' code. Without weights each layer contributes twice one minus a cosine: 0 to 4.
    Distances with different networks, layers or weights are not comparable.

    Args:
        features: images to a list of activations (B, C, *spatial) or (B, F), in 2D or 3D: ``PerceptualFeatures`` for
            any network and layers.
        weights: one entry per layer, a number or one per channel (C,), non-negative; None gives all weight 1.

    Raises:
        ValueError: if a weight is negative.

    Example:
        >>> from medcf.guidance import PerceptualFeatures
        >>> _ = torch.manual_seed(0)
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3))
        >>> metric = PerceptualDistance(PerceptualFeatures(network, ["0", "2"]))
        >>> image = torch.rand(1, 1, 16, 16)
        >>> _ = metric(torch.cat([image, -image]), torch.cat([image, image]))
        >>> unchanged, inverted = metric.per_case().tolist()
        >>> unchanged == 0 < inverted
        True
    """

    higher_is_better = False
    left_out_reason = "activations are not finite"

    def __init__(
        self,
        features: Callable[[Tensor], Sequence[Tensor]],
        weights: Sequence[float | Sequence[float] | Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.weights = None if weights is None else [torch.as_tensor(weight).double() for weight in weights]
        for layer, weight in enumerate(self.weights or []):
            if weight.ndim > 1 or (weight < 0).any():
                raise ValueError(f"weights: entry {layer} must be a number or one per channel, none negative.")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare images (B, C, *spatial), in the range the network expects, with their inputs ``y``; returns (B,)."""
        if y is None or y.shape != y_pred.shape:
            raise ValueError("PerceptualDistance needs the inputs as y, of the shape of y_pred.")
        with torch.no_grad():
            pairs = list(zip(self.features(y_pred), self.features(y), strict=True))
        if self.weights is not None and len(self.weights) != len(pairs):
            raise ValueError(f"weights has {len(self.weights)} entries, but the features have {len(pairs)} layers.")
        total = torch.zeros(len(y), dtype=torch.float64)
        for layer, (found, own) in enumerate(pairs):
            difference = (_unit(found) - _unit(own)).square()
            if self.weights is not None:
                weight, channels = self.weights[layer], difference.shape[1]
                if weight.ndim and len(weight) != channels:
                    raise ValueError(
                        f"weights: entry {layer} has {len(weight)} values, but the layer has {channels} channels."
                    )
                difference = difference * weight.reshape(1, -1, 1)
            total += difference.sum(1).mean(1)
        return torch.where(total.isfinite(), total, torch.nan)


def _unit(activations: Tensor) -> Tensor:
    """Scale the channel vector at each location to length 1: (B, C, places), float64; a zero vector stays zero."""
    places = activations.reshape(*activations.shape[:2], -1)
    return normalize(places.detach().cpu().double(), dim=1, eps=1e-10)


METRICS.add("perceptual_distance", "LPIPS-style distance to the input on any network", PerceptualDistance)
