# SPDX-License-Identifier: Apache-2.0
"""Hooks that keep part of the image: the known part is noised from the input and put back after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from skimage.morphology import convex_hull_image

from medcf.runtime.choices import check_numbers
from medcf.sampling import Chain, Hook, noised
from medcf.schedulers import Step

__all__ = [
    "KnownNoise",
    "KnownRegion",
    "Level",
    "SegmentedRegion",
    "SelfMask",
    "background",
    "check_mask",
    "composite",
    "subject_mask",
]

KnownNoise = Literal["fresh", "shared"]
Level = Literal["exact", "published_code"]


class KnownRegion(Hook):
    """Put the input, noised to the sample's level, back wherever the mask forbids changes.

    After the last step this is the input itself, so untouched pixels are bit-identical to it.

    Args:
        chain: the pass.
        mask: where the image may change (N, 1, *spatial), bool or in [0, 1]; None allows changes everywhere.
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
        return composite(self.mask, sample, noised(scheduler, original, t, generators))


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


def composite(mask: torch.Tensor, changed: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return ``changed`` where the mask allows it and ``known`` elsewhere, there bit for bit.

    Args:
        mask: (N, 1, *spatial), bool, or a mixture in [0, 1].
        changed: (N, C, *spatial).
        known: the same shape.
    """
    if mask.dtype == torch.bool:
        return torch.where(mask, changed, known)
    return known + mask.to(changed.dtype) * (changed - known)


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


def background(image: torch.Tensor) -> torch.Tensor:
    """Return the area outside the subject (B, 1, *spatial), bool: pixels of exactly -1 connected to the border.

    Black pixels inside, such as fluid, are not background.

    Args:
        image: (B, C, *spatial) in [-1, 1].
    """
    black = (image == -1).all(dim=1).cpu().numpy()
    outside = np.stack([one & ~ndimage.binary_fill_holes(~one) for one in black])
    return torch.from_numpy(outside)[:, None].to(image.device)


def subject_mask(
    image: torch.Tensor,
    segmenter: Callable[[torch.Tensor], torch.Tensor] | None = None,
    *,
    margin: int = 1,
    softness: float = 1.0,
) -> torch.Tensor:
    """Return where the subject is (B, 1, *spatial): 1 inside, falling smoothly to 0 outside.

    Args:
        image: (B, C, *spatial) in [-1, 1].
        segmenter: images to logits (B, K, *spatial) of structures, the first of them the background; the subject is
            what their outline encloses. None, or an image without any structure, takes all that is not background.
        margin: pixels by which the area is dilated.
        softness: standard deviation of the transition in pixels; 0 has a sharp border.
    """
    inside = ~background(image)[:, 0].cpu().numpy()
    if segmenter is not None:
        labels = (segmenter(image).argmax(1) > 0).cpu().numpy()
        for number, structures in enumerate(labels):
            outline = _hull(structures)
            if outline.any():
                inside[number] = outline
    return torch.from_numpy(_softened(inside, margin, softness))[:, None].to(image.device)


class SegmentedRegion:
    """Where structures of a segmenter are, such as both lungs: a region for any method, and the organ of a map.

    Unlike `subject_mask` it takes the structures as they are, however many parts they have, with their holes filled.

    Args:
        segmenter: images (B, C, *spatial) in [-1, 1] to logits (B, K, *spatial), the background first.
        labels: the structures that count; None takes all but the background.
        margin: pixels by which they are dilated.
        softness: standard deviation of the transition in pixels; 0 has a sharp border.
    """

    def __init__(
        self,
        segmenter: Callable[[torch.Tensor], torch.Tensor],
        labels: Sequence[int] | None = None,
        *,
        margin: int = 0,
        softness: float = 0.0,
    ) -> None:
        check_numbers(margin=margin, whole=True)
        if margin < 0 or softness < 0:
            raise ValueError(f"margin={margin}, softness={softness}: give 0 or more pixels.")
        self.segmenter, self.margin, self.softness = segmenter, margin, softness
        self.labels = None if labels is None else [int(label) for label in labels]

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mask (B, 1, *spatial) in [0, 1]; of an image without any of the structures, what is not black."""
        found = self.segmenter(image).argmax(1)
        wanted = found > 0 if self.labels is None else torch.isin(found, found.new_tensor(self.labels))
        inside = np.stack([ndimage.binary_fill_holes(one) for one in wanted.cpu().numpy()])
        empty = ~inside.reshape(len(inside), -1).any(1)
        if empty.any():
            inside[empty] = ~background(image)[:, 0].cpu().numpy()[empty]
        return torch.from_numpy(_softened(inside, self.margin, self.softness))[:, None].to(image.device)


def _softened(inside: Any, margin: int, softness: float) -> Any:
    """Return masks (B, *spatial), bool, dilated and with a soft border, in [0, 1]."""
    grown = [ndimage.binary_dilation(one, iterations=margin) if margin else one for one in inside]
    soft = [ndimage.gaussian_filter(one.astype(np.float32), softness) if softness else one for one in grown]
    return np.stack([np.where(value < 1e-3, 0, value) for value in soft]).astype(np.float32)


def _hull(mask: Any) -> Any:
    """Return the filled convex hull of the largest connected part of a mask."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return convex_hull_image(largest) if mask.ndim == 2 else ndimage.binary_fill_holes(largest)
