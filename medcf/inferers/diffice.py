# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE: diffusion-based iterative counterfactual explanations (2D fetal ultrasound, but nothing here is 2D only).

Each of L passes noises the last output to a limited level and denoises it, guided by the gradient of the counterfactual
loss at the predicted clean image. The loss stays anchored to the ORIGINAL image in every pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medcf.guidance import X0Gradient, XtGradient
from medcf.inferers.dime import check_start, nested_gradient
from medcf.inferers.method import Method
from medcf.inferers.options import GuidanceOptions
from medcf.inferers.scales import search_scales
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook
from medcf.schedulers import RespacedScheduler

__all__ = ["DiffICEInferer", "DiffICEOptions"]


@dataclass(frozen=True, kw_only=True)
class DiffICEOptions(GuidanceOptions):
    """Options of Diff-ICE; ``strength`` 0.3 with 400 steps is the paper's tau = 120.

    ``start_variant="published_code"`` noises one kept step further than it denoises and, with ``gradient="dime"``,
    takes the first gradient at the clean start, as in the published code of this family.

    Attributes:
        num_iterations: passes L.
        gradient: "x0" (the method), "xt" through the denoiser, or "dime" with an inner chain per step.
        gradient_step: for "x0", at this step's prediction ("current") or the previous one ("previous", as in the code
            of this family).
    """

    num_iterations: int = 5
    gradient: Literal["x0", "xt", "dime"] = "x0"
    gradient_step: Literal["current", "previous"] = "current"

    def __post_init__(self) -> None:
        """Refuse a previous gradient of another estimator."""
        super().__post_init__()
        if self.gradient_step == "previous" and self.gradient != "x0":
            raise ValueError(f"gradient_step='previous' requires gradient='x0', not {self.gradient!r}.")


class DiffICEInferer(Method):
    """Iterative classifier-guided counterfactuals (Diff-ICE, section 3.2, eq. 1 to 3)."""

    title = "Diff-ICE"
    Options = DiffICEOptions
    run_pass = search_scales

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return the scheduler with the method's steps; refuse a start at which DiME's gradient is infinite."""
        scheduler = Method.prepared(self, scheduler)  # not super(): diffice_single has this method, too
        return check_start(scheduler, self.options) if self.options.gradient == "dime" else scheduler

    def eager_reason(self) -> str | None:
        """Say that the gradient at the noisy image is taken through the network."""
        if self.options.gradient == "xt":
            return "differentiates the network (gradient='xt')"
        return Method.eager_reason(self)  # not super(): diffice_single has this method, too

    def hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return the estimator of the gradient."""
        options, loss = self.options, chain.guidance()
        if options.gradient == "xt":
            return [XtGradient(loss, every=options.guide_every)]
        if options.gradient == "dime":
            return [nested_gradient(chain, options.guide_every, from_start=options.start_variant == "published_code")]
        return [X0Gradient(loss, gradient_step=options.gradient_step, start=chain.start, every=options.guide_every)]


METHODS.add("diffice", "Iterative classifier-guided counterfactuals (Diff-ICE)", DiffICEInferer)
