# SPDX-License-Identifier: Apache-2.0
"""Hooks that keep part of the image: the known part is noised from the input and put back after each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812

from medcf.runtime.choices import check_numbers
from medcf.sampling import Chain, Hook, noised
from medcf.schedulers import Step

__all__ = ["KnownNoise", "KnownRegion", "Level", "SelfMask", "check_mask"]

KnownNoise = Literal["fresh", "shared"]
Level = Literal["exact", "published_code"]


class KnownRegion(Hook):
    """Put the input, noised to the sample's level, back wherever the mask forbids changes.

    After the last step this is the input itself, so untouched pixels are bit-identical to it.

    Args:
        chain: the pass.
        mask: where the image may change (N, 1, *spatial), bool; None allows changes everywhere.
        noise: "fresh" draws new noise for the known part at each step, "shared" one map for the whole chain.
        level: noise level of the known part after a step from t: that of the step's result ("exact"), or t although the
            sample has moved on ("published_code", as in both of FastDiME's code bases).
        final_composite: whether to put the input itself back after the last step even with level "published_code".
    """

    def __init__(
        self,
        chain: Chain,
        mask: torch.Tensor | None = None,
        *,
        noise: KnownNoise = "fresh",
        level: Level = "exact",
        final_composite: bool = True,
    ) -> None:
        self.chain = chain
        self.mask = mask
        self.level = level
        self.final_composite = final_composite
        self._generators = None if noise == "shared" else chain.generators("known")

    def after_step(self, sample: torch.Tensor, step: Step) -> torch.Tensor:
        """Return the drawn images with the known part put back."""
        if self.mask is None:
            return sample
        scheduler, original = self.chain.scheduler, self.chain.original.to(sample.dtype)
        t = step.timestep if self.level == "published_code" else scheduler.previous(step.timestep)
        if step.timestep == self.chain.timesteps[-1] and self.final_composite:
            t = -1  # the input itself, because the chain ends at the clean image
        generators = self._generators or self.chain.generators("known")  # shared: the same draws at each step
        return torch.where(self.mask, sample, noised(scheduler, original, t, generators))


class SelfMask(KnownRegion):
    """FastDiME's self-optimized mask: the image may change where the predicted clean image already does (eq. 6 to 8).

    |x0 - x| is summed over channels, divided by its maximum, dilated by a maximum over a window, and compared with a
    threshold. Outside, both the predicted clean image and the sample are replaced by the input.

    Args:
        chain: the pass.
        start: the first masked step, counted from 0.
        threshold: fraction of the largest difference below which a pixel keeps the input.
        dilation: odd width of the window in pixels.
        options: see ``KnownRegion``.
    """

    def __init__(self, chain: Chain, *, start: int, threshold: float, dilation: int, **options: Any) -> None:
        super().__init__(chain, **options)
        self.start = start
        self.threshold = threshold
        self.dilation = dilation
        self._steps = 0

    def on_step(self, step: Step) -> Step:
        """Return the step with its predicted clean image replaced by the input wherever they hardly differ."""
        if self._steps >= self.start:
            prediction = step.pred_original.detach()
            self.mask = changed_region(prediction, self.chain.original, self.threshold, self.dilation)
            known = self.chain.original.to(prediction.dtype)
            step = replace(step, pred_original=torch.where(self.mask, prediction, known))
        self._steps += 1
        return step


def check_mask(*, mask_start: float, mask_threshold: float, dilation: int) -> None:
    """Refuse `SelfMask` options that are out of range.

    Raises:
        ValueError: names the option.
    """
    check_numbers(dilation=dilation, whole=True)
    if dilation < 1 or dilation % 2 == 0:
        raise ValueError(f"dilation={dilation}: the window needs an odd width in pixels.")
    check_numbers(mask_start=mask_start, mask_threshold=mask_threshold)
    for name, value in (("mask_start", mask_start), ("mask_threshold", mask_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is a fraction: use a value in [0, 1].")


def changed_region(image: torch.Tensor, original: torch.Tensor, threshold: float, dilation: int) -> torch.Tensor:
    """Return where two batches of images differ (N, 1, *spatial), bool; all False for an image equal to its original.

    Args:
        image: (N, C, *spatial).
        original: the same shape.
        threshold: fraction of an image's largest difference that counts.
        dilation: odd width in pixels of the window over which the largest difference is taken.
    """
    difference = (image - original).abs().sum(dim=1, keepdim=True)
    pool = F.max_pool2d if image.ndim == 4 else F.max_pool3d
    largest = difference.flatten(1).amax(dim=1).reshape(-1, *[1] * (image.ndim - 1))
    spread = pool(difference, dilation, stride=1, padding=dilation // 2)
    return (spread >= threshold * largest) & (largest > 0)
