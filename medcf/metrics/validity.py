# SPDX-License-Identifier: Apache-2.0
"""Validity: is the counterfactual of the class that was asked for, and does that hold?"""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor, nn

from medcf.registry import METRICS

__all__ = ["FlipRatio", "MeanQualityDifference", "flip_survival", "perturbations"]


class FlipRatio(CumulativeIterationMetric):
    """Share of the inputs of another class that their counterfactuals bring to the target class.

    Inputs that the classifier already gives the target class do not enter; ``left_out`` counts them.
    Source: FR of Pegios et al., Diff-ICE, section 4.

    Args:
        target: index of the target class.

    Example:
        >>> metric = FlipRatio(target=1)
        >>> before = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> after = torch.tensor([[0.0, 2.0], [1.0, 0.5], [0.0, 3.0]])
        >>> _ = metric(after, before)
        >>> metric.aggregate(), metric.entered, metric.left_out
        (0.5, 2, 1)
    """

    higher_is_better = True

    def __init__(self, target: int = 1) -> None:
        super().__init__()
        self.target = target
        self.entered = 0
        self.left_out = 0

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Compare the decisions.

        Args:
            y_pred: logits of the counterfactuals, (B, K).
            y: logits of the inputs, (B, K).
            kwargs: not used.

        Returns:
            (B, 2): did the input enter, is the counterfactual of the target class.
        """
        if y is None:
            raise ValueError("FlipRatio needs the logits of the inputs as y.")
        entered = y.argmax(1) != self.target
        return torch.stack([entered, y_pred.argmax(1) == self.target], dim=1)

    def aggregate(self) -> float:
        """Return the share; NaN when no input entered."""
        entered, flipped = self.get_buffer().unbind(1)
        self.entered = int(entered.sum())
        self.left_out = len(entered) - self.entered
        return float((entered & flipped).sum()) / self.entered if self.entered else float("nan")


class MeanQualityDifference(CumulativeIterationMetric):
    """MQD: mean gain of an oracle's quality score, of the inputs whose score is below one half.

    MQD = 1/N sum 1[QS(x) < 0.5] (QS(x_c) - QS(x)), where N counts all inputs, those above one half too.
    Source: Pegios et al., Diff-ICE, section 4. ``mean_difference`` has no indicator.

    Example:
        >>> metric = MeanQualityDifference()
        >>> _ = metric(torch.tensor([0.75, 1.0]), torch.tensor([0.25, 0.75]))
        >>> metric.aggregate(), metric.mean_difference
        (0.25, 0.375)
    """

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.mean_difference = float("nan")

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Pair the scores.

        Args:
            y_pred: quality of the counterfactuals in [0, 1], (B,).
            y: quality of the inputs in [0, 1], (B,).
            kwargs: not used.

        Returns:
            (B, 2): quality before and after.
        """
        if y is None:
            raise ValueError("MeanQualityDifference needs the quality of the inputs as y.")
        return torch.stack([y, y_pred], dim=1)

    def aggregate(self) -> float:
        """Return MQD."""
        before, after = self.get_buffer().unbind(1)
        self.mean_difference = float((after - before).mean())
        return float(((before < 0.5) * (after - before)).mean())


def perturbations(
    images: Tensor, *, blur_sigma: float = 0.5, noise_std: float = 0.03, seed: int = 0
) -> dict[str, Tensor]:
    """Disturb images as a harmless change of scanner settings would.

    Args:
        images: (B, C, H, W) in [-1, 1].
        blur_sigma: standard deviation of the Gaussian blur, in pixels.
        noise_std: standard deviation of the added noise, in units of the image (whose range is 2).
        seed: seed of the noise.

    Returns:
        The disturbed images by name: ``blur`` and ``noise``.
    """
    from monai.networks.layers import GaussianFilter

    generator = torch.Generator(device="cpu").manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images)
    blur = GaussianFilter(images.ndim - 2, sigma=blur_sigma).to(images)
    return {"blur": blur(images), "noise": (images + noise_std * noise).clamp(-1, 1)}


@torch.no_grad()
def flip_survival(classifier: nn.Module, images: Tensor, target: int = 1, **settings: Any) -> dict[str, Tensor]:
    """Tell which counterfactuals keep the target class after a harmless disturbance; adversarial ones do not.

    Args:
        classifier: the explained classifier, images to logits (B, K).
        images: counterfactuals, (B, C, H, W) in [-1, 1].
        target: index of the target class.
        settings: of :func:`perturbations`.

    Returns:
        A Boolean (B,) for each disturbance, and ``all``: the class survived every one.
    """
    kept = {
        name: classifier(disturbed).argmax(1) == target for name, disturbed in perturbations(images, **settings).items()
    }
    return {**kept, "all": torch.stack(list(kept.values())).all(0)}


METRICS.add("flip_ratio", "share of inputs brought to the target class", FlipRatio)
METRICS.add("mean_quality_difference", "gain of an oracle's quality score", MeanQualityDifference)
