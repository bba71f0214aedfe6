# SPDX-License-Identifier: Apache-2.0
"""The gradient at the noisy image, through the denoiser: the forward guidance of universal guidance.

Source: Bansal et al. 2023, arXiv 2302.07121. "Universal" is that paper's name for guidance by any differentiable
function; it does not mean that this method suits every case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from medcf.guidance import NoisyL1, XtGradient
from medcf.guidance.regions import Level, SelfMask, check_mask
from medcf.inferers.checks import check_choice, check_numbers
from medcf.inferers.guided import GuidedInferer, Variant
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook

__all__ = ["UniversalInferer"]

OWN: dict[str, dict[str, Any]] = {
    "paper": {"mask": False, "l1_scale": 0.0},
    "published_code": {"mask": True, "l1_scale": 0.05},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"start_variant": "exact", "class_loss": "cross_entropy"},
    "published_code": {"start_variant": "published_code", "class_loss": "logit"},
}


class UniversalInferer(GuidedInferer):
    """Guidance by J^T g, J = d x0 / d x_t: the x_t gradient in Diff-ICE's comparison (called GMD there).

    Each step costs one forward and one backward pass of the denoiser, and the memory of its graph. It uses only the
    forward part of universal guidance, without backward guidance and recurrence.

    Args:
        args: scheduler, classifier, target and perceptual, see ``GuidedInferer``.
        variant: "paper" sends the whole loss through the denoiser and adds nothing. "published_code" is the baseline in
            FastDiME's repository: only the class term (minus the target's logit) goes through the denoiser; the
            perceptual gradient is taken at the predicted clean image and used directly; an L1 distance pulls the noisy
            image toward the input; FastDiME's self-optimized mask keeps what hardly changes, noised to the level of the
            step rather than of its result; and the image is noised one kept step further than it is denoised.
        mask: use the self-optimized mask; None uses the variant's setting.
        mask_start: fraction of the chain that runs before masking starts.
        mask_threshold: fraction of the largest difference below which a pixel keeps the input.
        dilation: odd width of the mask's dilation in pixels.
        l1_scale: weight of the L1 distance between noisy image and input, summed over pixels; None uses the variant's
            value (0.05 in the published code).
        options: see ``GuidedInferer``, also for errors; explicit options take precedence over the variant.
    """

    title = "x_t gradient"

    def __init__(
        self,
        *args: Any,
        variant: Variant = "paper",
        mask: bool | None = None,
        mask_start: float = 0.5,
        mask_threshold: float = 0.15,
        dilation: int = 5,
        l1_scale: float | None = None,
        **options: Any,
    ) -> None:
        check_choice("variant", variant, Variant)
        super().__init__(*args, **{**VARIANTS[variant], **options})
        check_numbers(l1_scale=l1_scale)
        check_mask(mask_start=mask_start, mask_threshold=mask_threshold, dilation=dilation)
        self.variant: Variant = variant
        self.mask: bool = OWN[variant]["mask"] if mask is None else mask
        self.mask_start, self.mask_threshold, self.dilation = mask_start, mask_threshold, dilation
        self.l1_scale: float = OWN[variant]["l1_scale"] if l1_scale is None else l1_scale

    def _make_hooks(self, chain: Chain) -> Sequence[Hook]:
        where: Literal["x0", "xt"] = "xt" if self.variant == "paper" else "x0"
        hooks: list[Hook] = [XtGradient(chain.guidance(), perceptual_at=where, every=self.guide_every)]
        if self.l1_scale:
            hooks.append(NoisyL1(chain.original, self.l1_scale))
        if self.mask:
            level: Level = "exact" if self.variant == "paper" else "published_code"
            start = round(self.mask_start * len(chain.timesteps))
            hooks.append(
                SelfMask(chain, start=start, threshold=self.mask_threshold, dilation=self.dilation, level=level)
            )
        return hooks


METHODS.add("universal", "Gradient at the noisy image, through the denoiser (universal guidance)", UniversalInferer)
