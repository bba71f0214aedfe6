# SPDX-License-Identifier: Apache-2.0
"""DiME: the gradient at the end of an unguided chain from every step (Jeanneret et al. 2022, arXiv 2203.15636)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medcf.guidance import DiMEGradient, NoisyL1
from medcf.inferers.checks import check_choice
from medcf.inferers.guided import GuidedInferer, Variant
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook, denoise
from medcf.schedulers import Step

__all__ = ["DiMEInferer", "nested_gradient"]

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"start_variant": "exact", "class_loss": "cross_entropy"},
    "published_code": {"start_variant": "published_code", "class_loss": "logit"},
}


class DiMEInferer(GuidedInferer):
    """Diffusion models for counterfactual explanations (DiME, algorithm 1 and eq. 7).

    At each of N steps an unguided chain runs from the noisy image to a clean one. The gradient of the loss there,
    divided by sqrt(A), guides the step. This costs N (N + 1) / 2 network calls per pass and scale.

    Args:
        args: scheduler, classifier, target and perceptual, see ``GuidedInferer``.
        variant: "paper", or "published_code": noises one kept step further than it denoises, takes the first gradient
            at the clean input instead of the end of an inner chain, and uses minus the target's logit as class loss.
        l1_scale: weight of the L1 distance between noisy image and input, whose gradient is not divided by sqrt(A). The
            published code uses 0.05; 0 gives every baseline the same loss.
        options: see ``GuidedInferer``, also for errors; explicit options take precedence over the variant.
    """

    title = "DiME"

    def __init__(
        self,
        *args: Any,
        variant: Variant = "paper",
        l1_scale: float = 0.0,
        **options: Any,
    ) -> None:
        check_choice("variant", variant, Variant)
        super().__init__(*args, **{**VARIANTS[variant], **options})
        self.variant = variant
        self.l1_scale = l1_scale

    def _make_hooks(self, chain: Chain) -> Sequence[Hook]:
        nested = nested_gradient(chain, self.guide_every, from_start=self.variant == "published_code")
        return [nested, NoisyL1(chain.original, self.l1_scale)] if self.l1_scale else [nested]


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
