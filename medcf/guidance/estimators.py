# SPDX-License-Identifier: Apache-2.0
"""Three estimates of the guidance gradient: at the predicted clean image, at the noisy image, and DiME's.

Each is a hook of the denoising loop (``medcf.inferers.sampling.Hook``) that moves the mean of a step: on stochastic
steps mean - Sigma g (Diff-ICE, eq. 2), on deterministic ones noise + sqrt(1 - A) g, which is the same shift with
another gain. The step knows its own gain. A stands for the cumulative product of alphas at the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from medcf.guidance.loss import BoundLoss

__all__ = ["DiMEGradient", "GradientEstimator", "X0Gradient", "XtGradient"]


class GradientEstimator:
    """A hook that guides every step down the gradient of a loss; subclasses say where the gradient is taken.

    Args:
        loss: function of the images (B, C, *spatial) alone, from ``CounterfactualLoss.bind``.
    """

    def __init__(self, loss: BoundLoss) -> None:
        self.loss = loss
        #: Logits (B, K) at the last image whose gradient was taken; None before the first step.
        self.logits: torch.Tensor | None = None

    def before_model(self, sample: torch.Tensor, t: int) -> torch.Tensor:
        """Return the noisy images the model is to see, here unchanged."""
        return sample

    def on_step(self, step: Any) -> Any:
        """Return the step with its mean moved against the gradient."""
        return step.guide(self.gradient(step))

    def after_step(self, sample: torch.Tensor, step: Any) -> torch.Tensor:
        """Return the drawn images, here unchanged."""
        return sample

    def gradient(self, step: Any) -> torch.Tensor:
        """Return the estimate g, shaped like the sample."""
        raise NotImplementedError

    def at(self, image: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the loss at a clean image, whatever the caller's grad mode."""
        with torch.enable_grad():
            point = image.detach().requires_grad_()
            terms = self.loss(point)
            (gradient,) = torch.autograd.grad(terms.total, point)
        self.logits = terms.logits.detach()
        return gradient


class X0Gradient(GradientEstimator):
    """Gradient with respect to the predicted clean image, used as it is (Diff-ICE, section 3.2).

    The denoiser is not differentiated: one forward a step and no graph through it. The point is the step's
    ``pred_original``, clipped if the scheduler clips.

    Args:
        loss: function of the images alone.
        gradient_step: "current" takes this step's prediction; "previous" the one before it, as the published code of
            the lineage does.
        start: with "previous", the images whose gradient guides the first step: the clean images that were noised.
    """

    def __init__(
        self,
        loss: BoundLoss,
        *,
        gradient_step: Literal["current", "previous"] = "current",
        start: torch.Tensor | None = None,
    ) -> None:
        super().__init__(loss)
        if gradient_step not in ("current", "previous"):
            raise ValueError(f"gradient_step={gradient_step!r} is unknown: use 'current' or 'previous'.")
        if gradient_step == "previous" and start is None:
            raise ValueError("gradient_step='previous' needs start, the clean images that were noised.")
        self.previous = start if gradient_step == "previous" else None

    def gradient(self, step: Any) -> torch.Tensor:
        """Return the gradient at the predicted clean image."""
        if self.previous is None:
            return self.at(step.pred_original)
        point, self.previous = self.previous, step.pred_original
        return self.at(point)


class XtGradient(GradientEstimator):
    """Gradient with respect to the noisy image, J^T g with J = d x0 / d x_t, by autograd through the denoiser.

    Exact for the tilted posterior where the loss is linear, at the cost of a backward pass and its memory. Where the
    prediction was clipped its derivative is zero.
    """

    def before_model(self, sample: torch.Tensor, t: int) -> torch.Tensor:
        """Return the noisy images as a leaf, so that the loop records the forward."""
        return sample.detach().requires_grad_()

    def gradient(self, step: Any) -> torch.Tensor:
        """Return the gradient at the noisy image."""
        with torch.enable_grad():
            terms = self.loss(step.pred_original)
            (gradient,) = torch.autograd.grad(terms.total, step.sample)
        self.logits = terms.logits.detach()
        return gradient

    def on_step(self, step: Any) -> Any:
        """Return the guided step without its graph."""
        gradient = self.gradient(step)
        tensors = {name: value.detach() for name, value in vars(step).items() if isinstance(value, torch.Tensor)}
        return replace(step, **tensors).guide(gradient)


class DiMEGradient(GradientEstimator):
    """Gradient at the end of an unguided chain from each step, times 1 / sqrt(A) (DiME, Jeanneret et al. 2022, eq. 7).

    The inner chain begins with the step's own, unguided draw, so its first forward is shared with the outer chain: N
    guided steps cost N (N + 1) / 2 forwards.

    Args:
        loss: function of the images alone.
        complete: runs the unguided chain from a step to clean images (B, C, *spatial); an inferer gives it.
        alpha_bar: the scheduler's ``alpha_bar(t)``.
        start: the images whose gradient guides the first step instead of an inner chain's (DiME's code begins with the
            clean input); None runs the chain there, too.
    """

    def __init__(
        self,
        loss: BoundLoss,
        complete: Callable[[Any], torch.Tensor],
        alpha_bar: Callable[[int], float],
        *,
        start: torch.Tensor | None = None,
    ) -> None:
        super().__init__(loss)
        self.complete = complete
        self.alpha_bar = alpha_bar
        self.start = start

    def gradient(self, step: Any) -> torch.Tensor:
        """Return the gradient at the completed image, scaled to the noise level of the step."""
        point, self.start = self.start, None
        if point is None:
            point = self.complete(step)
        return self.at(point) / self.alpha_bar(step.timestep) ** 0.5
