# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE: diffusion-based iterative counterfactual explanations (2D fetal ultrasound, but nothing here is 2D only).

Each of L passes noises the last output to a limited level and denoises it, guided by the gradient of the counterfactual
loss at the predicted clean image. The loss stays anchored to the ORIGINAL image in every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from medcf.guidance import X0Gradient, XtGradient
from medcf.inferers.checks import check_choice
from medcf.inferers.dime import nested_gradient
from medcf.inferers.guided import GuidedInferer
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook

__all__ = ["DiffICEInferer"]

Gradient = Literal["x0", "xt", "dime"]
GradientStep = Literal["current", "previous"]


class DiffICEInferer(GuidedInferer):
    """Iterative classifier-guided counterfactuals (Diff-ICE, section 3.2, eq. 1 to 3).

    Args:
        args: scheduler, classifier, target and perceptual, see ``GuidedInferer``.
        num_iterations: passes L.
        gradient: "x0" (the method), "xt" through the denoiser, or "dime" with an inner chain per step.
        gradient_step: for "x0", at this step's prediction ("current") or the previous one ("previous", as in the code
            of this family).
        options: see ``GuidedInferer``, also for errors. ``strength`` 0.3 with 400 steps is the paper's tau = 120.
            ``start_variant="published_code"`` noises one kept step further than it denoises and, with "dime", takes the
            first gradient at the clean start, as in the published code of this family.
    """

    title = "Diff-ICE"

    def __init__(
        self,
        *args: Any,
        num_iterations: int = 5,
        gradient: Gradient = "x0",
        gradient_step: GradientStep = "current",
        **options: Any,
    ) -> None:
        super().__init__(*args, num_iterations=num_iterations, **options)
        check_choice("gradient", gradient, Gradient)
        check_choice("gradient_step", gradient_step, GradientStep)
        if gradient_step == "previous" and gradient != "x0":
            raise ValueError(f"gradient_step='previous' requires gradient='x0', not {gradient!r}.")
        self.gradient = gradient
        self.gradient_step = gradient_step

    def _make_hooks(self, chain: Chain) -> Sequence[Hook]:
        if self.gradient == "xt":
            return [XtGradient(chain.guidance(), every=self.guide_every)]
        if self.gradient == "dime":
            return [nested_gradient(chain, self.guide_every, from_start=self.start_variant == "published_code")]
        return [
            X0Gradient(chain.guidance(), gradient_step=self.gradient_step, start=chain.start, every=self.guide_every)
        ]


METHODS.add("diffice", "Iterative classifier-guided counterfactuals (Diff-ICE)", DiffICEInferer)
