# SPDX-License-Identifier: Apache-2.0
"""COUT: do a few pixels of the counterfactual, the most changed ones first, change the decision?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medcf.metrics.exclusions import ALREADY_TARGET, INPUT_NOT_FINITE, PRED_NOT_FINITE, ExclusionMetric, left_out_inputs
from medcf.registry import METRICS
from medcf.runtime.frozen import frozen

__all__ = ["COUT", "TransitionCurves", "transition_curves"]


@dataclass(frozen=True)
class TransitionCurves:
    """Confidences while pixels of the counterfactual replace those of the input.

    Attributes:
        fraction: fraction of pixels replaced, (S + 1,), from 0 to exactly 1.
        target: probability of the target class, (B, S + 1).
        source: probability of the input's class, (B, S + 1).
    """

    fraction: Tensor
    target: Tensor
    source: Tensor

    @property
    def cout(self) -> Tensor:
        """Area under the target's curve minus area under the source's (trapezoids), (B,) in [-1, 1]."""
        return torch.trapezoid(self.target - self.source, self.fraction, dim=1)


@torch.no_grad()
def transition_curves(
    classifier: Callable[[Tensor], Tensor],
    counterfactual: Tensor,
    image: Tensor,
    target: int = 1,
    source: Tensor | None = None,
    *,
    num_steps: int = 50,
    batch_size: int = 64,
) -> TransitionCurves:
    """Replace an image's pixels by those of its counterfactual, most changed first, and track the classifier.

    A pixel (voxel) is replaced in all channels at once; its change is the sum of absolute differences over channels.
    Ties are broken in raster order. Each of the ``num_steps`` steps replaces the same number of pixels, up to rounding.
    The fractions are the actual ones, so the last step is exact (the published code counts it as a full one).

    Args:
        classifier: images to logits (B, K).
        counterfactual: (B, C, *spatial).
        image: the inputs, same shape.
        target: index of the target class.
        source: class of each input, (B,); None uses the classifier's prediction.
        num_steps: number of steps S from the input to the counterfactual; at most the number of pixels.
        batch_size: images per call of the classifier.

    Returns:
        The curves.

    Raises:
        ValueError: if shapes differ or have no spatial axis, or a number is not positive.
    """
    if image.shape != counterfactual.shape or image.ndim < 3:
        raise ValueError(
            f"transition_curves needs counterfactuals and inputs of one shape (B, C, *spatial), got "
            f"{tuple(counterfactual.shape)} and {tuple(image.shape)}."
        )
    if num_steps < 1 or batch_size < 1:
        raise ValueError(f"num_steps={num_steps} and batch_size={batch_size} must be at least 1.")
    before, after = image.as_subclass(Tensor), counterfactual.as_subclass(Tensor)
    change = (after - before).abs().sum(1).flatten(1)
    rank = change.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(len(image), 1, *image.shape[2:])
    pixels = change.shape[1]
    steps = min(num_steps, pixels)
    counts = torch.arange(steps + 1, device=image.device) * pixels // steps
    # After all changed pixels are replaced, or before any is, a step makes no new image: each image is classified once.
    reached = torch.minimum(counts[None], (change != 0).sum(1, keepdim=True))
    new = torch.cat([torch.ones_like(reached[:, :1]), reached.diff(dim=1)], dim=1) != 0
    probabilities = []
    with frozen(classifier):
        for chunk in new.nonzero().split(batch_size):
            case, step = chunk.unbind(1)
            replaced = rank[case] < counts[step].view(-1, *(1,) * (image.ndim - 1))
            logits = classifier(torch.where(replaced, after[case], before[case]))
            probabilities.append(logits.as_subclass(Tensor).float().softmax(1))
    curves = torch.cat(probabilities)[new.flatten().cumsum(0) - 1].view(len(image), steps + 1, -1)
    classes = curves[:, 0].argmax(1) if source is None else source.to(image.device).long()
    source_curve = curves.gather(2, classes.view(-1, 1, 1).expand(-1, steps + 1, 1))[..., 0]
    return TransitionCurves(counts.float() / pixels, curves[..., target], source_curve)


class COUT(ExclusionMetric):
    """Counterfactual Transition: area under the target's confidence minus area under that of the input's class.

    Near 1: a few most changed pixels flip the decision. 0: the confidences cross halfway. Near -1: only the last pixels
    flip it, or it does not flip at all. An unchanged input has nothing to transfer: its curves are constant and its
    value is p_target(x) - p_source(x), below 0. Inputs of the target class do not count. The attacked classifier itself
    decides: an attack on few pixels scores WELL, one spread evenly over all pixels does not. Read it together with
    ``FlipSurvival``.

    Source: Khorram & Fuxin, "Cycle-consistent counterfactuals by latent transformations" (CVPR 2022), used by ACE and
    FastDiME. The published code is limited to RGB, divides by zero if nothing changed, and counts the last, partial
    step as a full one.

    Args:
        classifier, target, num_steps, batch_size: see :func:`transition_curves`.

    Example:
        >>> def classifier(images):  # predicts the target class if most of the image is bright
        ...     score = 20 * images.mean(dim=(1, 2, 3))
        ...     return torch.stack([-score, score], dim=1)
        >>> metric = COUT(classifier)
        >>> _ = metric(torch.ones(1, 1, 10, 10), -torch.ones(1, 1, 10, 10))
        >>> abs(round(metric.aggregate(), 3))
        0.0
    """

    higher_is_better = True
    reasons = (INPUT_NOT_FINITE, ALREADY_TARGET, PRED_NOT_FINITE)

    def __init__(
        self, classifier: Callable[[Tensor], Tensor], target: int = 1, num_steps: int = 50, batch_size: int = 64
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.target = target
        self.num_steps = num_steps
        self.batch_size = batch_size

    @torch.no_grad()
    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Track the transition of each case, from inputs ``y`` to counterfactuals, (B, C, *spatial): (B, 2)."""
        if y is None:
            raise ValueError("COUT needs the input images as y.")
        with frozen(self.classifier):
            logits = torch.cat([self.classifier(part) for part in y.split(self.batch_size)]).as_subclass(Tensor)
        not_finite, already = left_out_inputs(logits, self.target)
        follow = ~(not_finite | already)
        values = torch.zeros(len(y), device=y.device)
        if follow.any():
            curves = transition_curves(
                self.classifier,
                y_pred[follow],
                y[follow],
                self.target,
                logits[follow].argmax(1),
                num_steps=self.num_steps,
                batch_size=self.batch_size,
            )
            values[follow] = curves.cout
        return self.entry(values, not_finite, already, values.isnan())


METRICS.add("cout", "area between the confidences as changed pixels are transferred", COUT)
