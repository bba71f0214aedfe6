# SPDX-License-Identifier: Apache-2.0
"""DiME: the gradient at the end of an unguided chain from every step (Jeanneret et al. 2022, arXiv 2203.15636)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medcf.guidance import DiMEGradient, NoisyL1
from medcf.guidance.estimators import dime_signal
from medcf.inferers.method import Method
from medcf.inferers.options import ClassLoss, GuidanceOptions, StrengthOptions
from medcf.inferers.scales import search_scales
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook, denoise
from medcf.schedulers import RespacedScheduler, Step
from medcf.schedulers.base import StartVariant

__all__ = ["DiMEInferer", "DiMEOptions", "check_start", "nested_gradient"]

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"start_variant": "exact", "class_loss": "cross_entropy"},
    "published_code": {"start_variant": "published_code", "class_loss": "logit"},
}


@dataclass(frozen=True, kw_only=True)
class DiMEOptions(GuidanceOptions):
    """Options of DiME; explicit ones take precedence over the variant.

    Attributes:
        variant: "paper", or "published_code": noises one kept step further than it denoises, takes the first gradient
            at the clean input instead of the end of an inner chain, and uses minus the target's logit as class loss.
        start_variant: see `StrengthOptions`; None uses the variant's.
        class_loss: see `GuidanceOptions`; None uses the variant's.
        l1_scale: weight of the L1 distance between noisy image and input, whose gradient is not divided by sqrt(A). The
            published code uses 0.05; 0 gives every baseline the same loss.
    """

    variant: Literal["paper", "published_code"] = "paper"
    start_variant: StartVariant | None = None  # type: ignore[assignment]
    class_loss: ClassLoss | None = None  # type: ignore[assignment]
    l1_scale: float = 0.0

    def __post_init__(self) -> None:
        """Fill in the variant."""
        super().__post_init__()
        self.set_defaults(VARIANTS[self.variant])


class DiMEInferer(Method):
    """Diffusion models for counterfactual explanations (DiME, algorithm 1 and eq. 7).

    At each of N steps an unguided chain runs from the noisy image to a clean one. The gradient of the loss there,
    divided by sqrt(A), guides the step. This costs N (N + 1) / 2 network calls per pass and scale.
    """

    title = "DiME"
    Options = DiMEOptions
    run_pass = search_scales

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return the scheduler with the method's steps; refuse to start where there is no signal."""
        return check_start(super().prepared(scheduler), self.options)

    def hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return the estimator, and the pull toward the input."""
        options = self.options
        nested = nested_gradient(chain, options.guide_every, from_start=options.variant == "published_code")
        return [nested, NoisyL1(chain.original, options.l1_scale)] if options.l1_scale else [nested]


def check_start(scheduler: RespacedScheduler, options: StrengthOptions) -> RespacedScheduler:
    """Return the scheduler if each pass starts from a step at which the nested gradient is finite."""
    for strength in options.strengths:
        dime_signal(scheduler.alpha_bar, scheduler.timesteps_from(strength)[0])
    return scheduler


def nested_gradient(chain: Chain, every: int = 1, *, from_start: bool = False) -> DiMEGradient:
    """Create an estimator whose inner chains have their own noise, so the outer chain draws the same as other methods.

    Args:
        chain: the guided pass.
        every: take the gradient at every n-th step.
        from_start: take the first gradient at the clean start instead of the end of an inner chain.
    """
    inner = chain.generators("inner")

    def complete(step: Step) -> torch.Tensor:
        rest = chain.timesteps[chain.timesteps.index(step.timestep) + 1 :]
        return denoise(chain.denoiser, chain.scheduler, step.draw(inner), rest, generators=inner)

    first = chain.start if from_start else None
    return DiMEGradient(chain.guidance(), complete, chain.scheduler.alpha_bar, start=first, every=every)


METHODS.add("dime", "Gradients at the end of nested chains (DiME)", DiMEInferer)
