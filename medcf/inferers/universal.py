# SPDX-License-Identifier: Apache-2.0
"""The gradient at the noisy image, through the denoiser: the forward guidance of universal guidance.

Source: Bansal et al. 2023, arXiv 2302.07121. "UniversalInferer" is that paper's name for guidance by any differentiable
function; it does not mean that this method suits every case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medcf.guidance import NoisyL1, XtGradient
from medcf.guidance.regions import Level, SelfMask, check_mask
from medcf.inferers.method import Method
from medcf.inferers.options import ClassLoss, GuidanceOptions
from medcf.inferers.scales import search_scales
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook
from medcf.schedulers.base import StartVariant

__all__ = ["UniversalInferer", "UniversalOptions"]

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"start_variant": "exact", "class_loss": "cross_entropy", "mask": False, "l1_scale": 0.0},
    "published_code": {"start_variant": "published_code", "class_loss": "logit", "mask": True, "l1_scale": 0.05},
}


@dataclass(frozen=True, kw_only=True)
class UniversalOptions(GuidanceOptions):
    """Options of the x_t gradient; explicit ones take precedence over the variant.

    Attributes:
        variant: "paper" sends the whole loss through the denoiser and adds nothing. "published_code" is the baseline in
            FastDiME's repository: only the class term (minus the target's logit) goes through the denoiser; the
            perceptual gradient is taken at the predicted clean image and used directly; an L1 distance pulls the noisy
            image toward the input; FastDiME's self-optimized mask keeps what hardly changes, noised to the level of the
            step rather than of its result; and the image is noised one kept step further than it is denoised.
        start_variant: see `StrengthOptions`; None uses the variant's.
        class_loss: see `GuidanceOptions`; None uses the variant's.
        mask: use the self-optimized mask; None uses the variant's setting.
        mask_start: fraction of the chain that runs before masking starts.
        mask_threshold: fraction of the largest difference below which a pixel keeps the input.
        dilation: odd width of the mask's dilation in pixels.
        l1_scale: weight of the L1 distance between noisy image and input, summed over pixels; None uses the variant's
            value (0.05 in the published code).
    """

    variant: Literal["paper", "published_code"] = "paper"
    start_variant: StartVariant | None = None  # type: ignore[assignment]
    class_loss: ClassLoss | None = None  # type: ignore[assignment]
    mask: bool | None = None
    mask_start: float = 0.5
    mask_threshold: float = 0.15
    dilation: int = 5
    l1_scale: float | None = None

    def __post_init__(self) -> None:
        """Fill in the variant, and refuse a mask that is out of range."""
        super().__post_init__()
        self.set_defaults(VARIANTS[self.variant])
        check_mask(mask_start=self.mask_start, mask_threshold=self.mask_threshold, dilation=self.dilation)


class UniversalInferer(Method):
    """Guidance by J^T g, J = d x0 / d x_t: the x_t gradient in Diff-ICE's comparison (called GMD there).

    Each step costs one forward and one backward pass of the denoiser, and the memory of its graph. It uses only the
    forward part of universal guidance, without backward guidance and recurrence.
    """

    title = "x_t gradient"
    Options = UniversalOptions
    run_pass = search_scales

    def eager_reason(self) -> str | None:
        """Say that each step differentiates the network."""
        return "differentiates the network"

    def hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return the estimator, the pull toward the input, and the mask."""
        options = self.options
        where: Literal["x0", "xt"] = "xt" if options.variant == "paper" else "x0"
        hooks: list[Hook] = [XtGradient(chain.guidance(), perceptual_at=where, every=options.guide_every)]
        if options.l1_scale:
            hooks.append(NoisyL1(chain.original, options.l1_scale))
        if options.mask:
            level: Level = "exact" if options.variant == "paper" else "published_code"
            start = round(options.mask_start * len(chain.timesteps))
            shape: dict[str, Any] = {"threshold": options.mask_threshold, "dilation": options.dilation}
            hooks.append(SelfMask(chain, start=start, level=level, **shape))
        return hooks


METHODS.add("universal", "Gradient at the noisy image, through the denoiser (universal guidance)", UniversalInferer)
