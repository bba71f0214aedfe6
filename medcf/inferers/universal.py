# SPDX-License-Identifier: Apache-2.0
"""The gradient at the noisy image, through the denoiser (universal guidance: Bansal et al. 2023, arXiv 2302.07121)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from medcf.guidance import XtGradient
from medcf.inferers.checks import check_choice
from medcf.inferers.guided import GuidedInferer, Variant
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook

__all__ = ["UniversalInferer"]


class UniversalInferer(GuidedInferer):
    """Guidance by J^T g, J = d x0 / d x_t: the x_t gradient in Diff-ICE's comparison (GMD there).

    One forward and one backward of the denoiser a step, and the memory of its graph. Only the forward guidance of
    universal guidance is run: no backward guidance and no recurrence.

    Args:
        args: scheduler, classifier, target and perceptual, as ``GuidedInferer`` takes them.
        variant: "paper" sends the whole loss through the denoiser; "published_code" its class term only, while the
            perceptual gradient is taken at the predicted clean image and used as it is, as the published code does.
        options: see ``GuidedInferer``, also for errors.
    """

    title = "x_t gradient"

    def __init__(
        self,
        *args: Any,
        variant: Variant = "paper",
        **options: Any,
    ) -> None:
        check_choice("variant", variant, Variant)
        super().__init__(*args, **options)
        self.variant = variant

    def _make_hooks(self, chain: Chain) -> Sequence[Hook]:
        where: Literal["x0", "xt"] = "xt" if self.variant == "paper" else "x0"
        return [XtGradient(chain.guidance(), perceptual_at=where, every=self.guide_every)]


METHODS.add("universal", "Gradient at the noisy image, through the denoiser (universal guidance)", UniversalInferer)
