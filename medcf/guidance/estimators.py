# SPDX-License-Identifier: Apache-2.0
"""Three estimates of the guidance gradient: at the predicted clean image, at the noisy image, and DiME's.

Each is a hook of the denoising loop (``medcf.sampling.loop.Hook``) that moves the mean of a step: on stochastic steps
mean - Sigma g (Diff-ICE, eq. 2), on deterministic ones noise + sqrt(1 - A) g, which is the same shift with another
gain. The step knows its own gain. A is the cumulative product of alphas at the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from medcf.guidance.loss import BoundLoss
from medcf.runtime.choices import check_choice
from medcf.sampling import Hook
from medcf.schedulers import Step

__all__ = ["DiMEGradient", "GradientEstimator", "NoisyL1", "X0Gradient", "XtGradient", "dime_signal"]


class GradientEstimator(Hook):
    """A hook that guides each step down the gradient of a loss; subclasses define where the gradient is taken.

    Args:
        loss: function of the images (B, C, *spatial) only, from ``CounterfactualLoss.bind``.
        every: take the gradient at the first and then at every n-th step, and reuse it in between.

    Raises:
        ValueError: if ``every`` is not a positive number.
    """

    def __init__(self, loss: BoundLoss, *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every={every}: the gradient must be taken at least once: use 1 or more.")
        self.loss = loss
        self.every = every
        self._steps = 0
        self._held: torch.Tensor | None = None
        #: Logits (B, K) at the image where the last gradient was taken; None before the first step.
        self.logits: torch.Tensor | None = None

    def on_step(self, step: Step) -> Step:
        """Return the step with its mean moved against the gradient."""
        return step.guide(self.current(step))

    def is_due(self) -> bool:
        """Return whether this step computes its own gradient."""
        return self._held is None or self._steps % self.every == 0

    def current(self, step: Step) -> torch.Tensor:
        """Return the gradient for this step, or the last one computed; counts the step."""
        if self._held is None or self.is_due():
            self._held = self.gradient(step)
        self._steps += 1
        return self._held

    def gradient(self, step: Step) -> torch.Tensor:
        """Return the estimate g, shaped like the sample."""
        raise NotImplementedError

    def at(self, image: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the loss at a clean image, in any grad mode of the caller."""
        with torch.enable_grad():
            point = image.detach().requires_grad_()
            terms = self.loss(point)
            (gradient,) = torch.autograd.grad(terms.total, point)
        self.logits = terms.logits.detach()
        return gradient


class X0Gradient(GradientEstimator):
    """Gradient with respect to the predicted clean image, used directly (Diff-ICE, section 3.2).

    The denoiser is not differentiated: one network call per step and no graph through it. The gradient is taken at the
    step's ``pred_original``, clipped if the scheduler clips.

    Args:
        loss: function of the images only.
        gradient_step: "current" uses this step's prediction; "previous" the one before it, like the published code of
            this family.
        start: with "previous", the images whose gradient guides the first step: the clean images before noising.
        options: see `GradientEstimator`.
    """

    def __init__(
        self,
        loss: BoundLoss,
        *,
        gradient_step: Literal["current", "previous"] = "current",
        start: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(loss, **options)
        check_choice("gradient_step", gradient_step, Literal["current", "previous"])
        if gradient_step == "previous" and start is None:
            raise ValueError("gradient_step='previous' needs start, the clean images that were noised.")
        self.previous = start if gradient_step == "previous" else None

    def gradient(self, step: Step) -> torch.Tensor:
        """Return the gradient at the predicted clean image."""
        return self.at(step.pred_original if self.previous is None else self.previous)

    def on_step(self, step: Step) -> Step:
        """Return the guided step; its prediction becomes the previous one of the next step."""
        guided = super().on_step(step)
        if self.previous is not None:
            self.previous = step.pred_original
        return guided


class XtGradient(GradientEstimator):
    """Gradient with respect to the noisy image, J^T g with J = d x0 / d x_t, by autograd through the denoiser.

    Exact for the tilted posterior if the loss is linear, at the cost of a backward pass and its memory. Its derivative
    is zero wherever the prediction was clipped.

    Args:
        loss: function of the images only.
        perceptual_at: "xt" differentiates the whole loss through the denoiser; "x0" only the class term, and takes the
            gradient of the perceptual term at the predicted clean image.
        options: see `GradientEstimator`.
    """

    def __init__(self, loss: BoundLoss, *, perceptual_at: Literal["xt", "x0"] = "xt", **options: Any) -> None:
        super().__init__(loss, **options)
        check_choice("perceptual_at", perceptual_at, Literal["xt", "x0"])
        self.perceptual_at = perceptual_at

    def before_model(self, sample: torch.Tensor, t: int) -> torch.Tensor:
        """Return the noisy images as a leaf, so that the loop records the network call if this step needs it."""
        return sample.detach().requires_grad_(self.is_due())

    def gradient(self, step: Step) -> torch.Tensor:
        """Return the gradient at the noisy image."""
        with torch.enable_grad():
            terms = self.loss(step.pred_original)
            if self.perceptual_at == "xt":
                (gradient,) = torch.autograd.grad(terms.total, step.sample)
            else:
                classification = (terms.classifier_scale * terms.classification).sum()
                (gradient,) = torch.autograd.grad(classification, step.sample, retain_graph=True)
                if terms.perceptual.requires_grad:  # constant without a perceptual network
                    perceptual = (terms.perceptual_scale * terms.perceptual).sum()
                    gradient = gradient + torch.autograd.grad(perceptual, step.pred_original)[0]
        self.logits = terms.logits.detach()
        return gradient

    def on_step(self, step: Step) -> Step:
        """Return the guided step without its graph."""
        gradient = self.current(step)
        tensors: dict[str, Any] = {
            name: value.detach() for name, value in vars(step).items() if isinstance(value, torch.Tensor)
        }
        return replace(step, **tensors).guide(gradient)


class DiMEGradient(GradientEstimator):
    """Gradient at the end of an unguided chain from each step, times 1 / sqrt(A) (DiME, Jeanneret et al. 2022, eq. 7).

    The inner chain starts with the step's own unguided draw, so its first network call is shared with the outer chain:
    N guided steps cost N (N + 1) / 2 network calls.

    Args:
        loss: function of the images only.
        complete: runs the unguided chain from a step to clean images (B, C, *spatial); provided by an inferer.
        alpha_bar: the scheduler's ``alpha_bar(t)``.
        start: images whose gradient guides the first step instead of an inner chain's (DiME's code starts with the
            clean input); None runs the chain there as well.
        every: see `GradientEstimator`.

    Raises:
        ValueError: at a step without signal (A = 0), whose gradient would be infinite.
    """

    def __init__(
        self,
        loss: BoundLoss,
        complete: Callable[[Step], torch.Tensor],
        alpha_bar: Callable[[int], float],
        *,
        start: torch.Tensor | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(loss, every=every)
        self.complete = complete
        self.alpha_bar = alpha_bar
        self.start = start

    def gradient(self, step: Step) -> torch.Tensor:
        """Return the gradient at the completed image, scaled to the noise level of the step."""
        signal = dime_signal(self.alpha_bar, step.timestep)
        point, self.start = self.start, None
        if point is None:
            point = self.complete(step)
        return self.at(point) / signal


def dime_signal(alpha_bar: Callable[[int], float], timestep: int) -> float:
    """Return sqrt(A), by which DiME divides the gradient of a step.

    Raises:
        ValueError: if it is 0, as at the last timestep of a schedule with zero terminal SNR.
    """
    signal = alpha_bar(timestep) ** 0.5
    if signal == 0:
        raise ValueError(
            f"DiME divides its gradient by sqrt(A), which is 0 at timestep {timestep}, where this schedule holds no "
            "signal (zero terminal SNR): use a strength below 1, or a gradient that does not divide, such as that of "
            "diffice or fastdime."
        )
    return signal


class NoisyL1(Hook):
    """A hook that pulls the noisy image toward the input by the L1 distance between them (code of DiME and FastDiME).

    The gradient, scale * sign(x_t - x), is used directly at any noise level. Place it after an estimator.

    Args:
        reference: inputs (B, C, *spatial).
        scale: weight of the distance; the published code uses 0.05.
    """

    def __init__(self, reference: torch.Tensor, scale: float) -> None:
        self.reference = reference
        self.scale = float(scale)

    def on_step(self, step: Step) -> Step:
        """Return the step with its mean moved toward the input."""
        return step.guide(self.scale * torch.sign(step.sample.detach() - self.reference))
