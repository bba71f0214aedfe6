# SPDX-License-Identifier: Apache-2.0
"""FastDiME: the gradient at the predicted clean image, and a self-optimized mask (Weng et al., arXiv 2312.14223)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medcf.guidance import NoisyL1, X0Gradient
from medcf.guidance.regions import KnownNoise, KnownRegion, Level, SelfMask, check_mask
from medcf.inferers.method import Method
from medcf.inferers.options import ClassLoss, GuidanceOptions
from medcf.inferers.scales import search_scales
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook
from medcf.schedulers import Step
from medcf.schedulers.base import StartVariant

__all__ = ["FastDiMEInferer", "FastDiMEOptions"]

PAPER: dict[str, Any] = {
    "gradient_step": "current",
    "gradient_at": "masked",
    "mask_start": 0.5,
    "mask_threshold": 0.15,
    "dilation": 5,
    "known_noise": "fresh",
    "level": "exact",
    "end": "sample",
    "start_variant": "exact",
    "class_loss": "cross_entropy",
    "clip_denoised": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "celeba": PAPER
    | {
        "gradient_step": "previous",
        "level": "published_code",
        "start_variant": "published_code",
        "class_loss": "logit",
    },
    "med": PAPER
    | {
        "gradient_at": "prediction",
        "level": "published_code",
        "dilation": 21,
        "end": "prediction",
        "clip_denoised": False,
    },
}


@dataclass(frozen=True, kw_only=True)
class FastDiMEOptions(GuidanceOptions):
    """Options of FastDiME; those that are None are the variant's.

    Attributes:
        variant: default options, as in the paper or one of the two code bases: "paper", "celeba", "med".
        mask: use the self-optimized mask; False is the method without it.
        mask_start: fraction of the chain that runs before masking starts.
        mask_threshold: fraction of the largest difference below which a pixel keeps the input.
        dilation: odd width of the mask's dilation in pixels.
        known_noise: noise of the kept part, "fresh" at each step or one map "shared" by all.
        level: noise level of the kept part, "exact" or one step behind ("published_code").
        gradient_step: take the gradient at this step's prediction ("current") or the previous one ("previous").
        gradient_at: take it at the "masked" prediction or at the "prediction" itself ("current" only).
        final_composite: put the input itself back outside the last mask.
        end: "sample" runs the whole chain; "prediction" omits the last step and returns the last, masked, predicted
            clean image.
        l1_scale: weight of the L1 distance between noisy image and input; the code of "celeba" uses 0.05.
        start_variant: see `StrengthOptions`.
        class_loss: see `GuidanceOptions`.
        clip_denoised: see `ChainOptions`.
    """

    variant: Literal["paper", "celeba", "med"] = "paper"
    mask: bool = True
    mask_start: float | None = None
    mask_threshold: float | None = None
    dilation: int | None = None
    known_noise: KnownNoise | None = None
    level: Level | None = None
    gradient_step: Literal["current", "previous"] | None = None
    gradient_at: Literal["masked", "prediction"] | None = None
    final_composite: bool = True
    end: Literal["sample", "prediction"] | None = None
    l1_scale: float = 0.0
    start_variant: StartVariant | None = None  # type: ignore[assignment]
    class_loss: ClassLoss | None = None  # type: ignore[assignment]
    clip_denoised: bool | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in the variant, and refuse a mask that is out of range."""
        super().__post_init__()
        self.set_defaults(VARIANTS[self.variant])
        mask: dict[str, Any] = {name: getattr(self, name) for name in ("mask_start", "mask_threshold", "dilation")}
        check_mask(**mask)


class FastDiMEInferer(Method):
    """DiME at the cost of a single chain, with changes only where the image needs them (FastDiME, eq. 4 to 8)."""

    title = "FastDiME"
    Options = FastDiMEOptions
    run_pass = search_scales

    def schedule(self, number: int) -> tuple[list[int], int | None]:
        """Return the steps of a pass, without the last one if the result is a prediction."""
        timesteps, start = super().schedule(number)
        return (timesteps[:-1] if self.options.end == "prediction" and len(timesteps) > 1 else timesteps), start

    def hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return estimator and mask, in the order of the variant, the pull toward the input, and the end."""
        options = self.options
        estimator = X0Gradient(
            chain.guidance(), gradient_step=options.gradient_step, start=chain.start, every=options.guide_every
        )
        hooks: list[Hook] = [estimator]
        if options.mask:
            region: KnownRegion = SelfMask(
                chain,
                start=round(options.mask_start * len(chain.timesteps)),
                threshold=options.mask_threshold,
                dilation=options.dilation,
                noise=options.known_noise,
                level=options.level,
                final_composite=options.final_composite,
            )
            # a mask placed first passes the estimator the prediction with the input put back
            hooks = [region, estimator] if options.gradient_at == "masked" else [estimator, region]
        if options.l1_scale:
            hooks.append(NoisyL1(chain.original, options.l1_scale))
        if options.end == "prediction":
            hooks.append(_ReturnPrediction(chain.timesteps[-1]))
        return hooks


class _ReturnPrediction(Hook):
    """Return the predicted clean image, as left by the preceding hooks, instead of the last sample."""

    def __init__(self, last: int) -> None:
        self.last = last

    def after_step(self, sample: torch.Tensor, step: Step) -> torch.Tensor:
        return step.pred_original.to(sample.dtype) if step.timestep == self.last else sample


METHODS.add("fastdime", "Gradient at the predicted clean image with a self-optimized mask (FastDiME)", FastDiMEInferer)
