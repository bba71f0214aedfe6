# SPDX-License-Identifier: Apache-2.0
"""Options of the methods: one frozen dataclass per method, put together from the groups documented here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from medcf.runtime.choices import check_choice, check_fields, numbers
from medcf.runtime.memory import MemoryBudget, check_budget
from medcf.schedulers.base import StartVariant

__all__ = [
    "ChainOptions",
    "EditOptions",
    "GuidanceOptions",
    "Options",
    "Region",
    "StrengthOptions",
    "option_names",
    "option_of",
    "with_options",
]

ClassLoss = Literal["cross_entropy", "logit"]
#: "subject", a mask (1 or B, 1, *spatial) in [0, 1], or a function from the images (B, C, *spatial) to one.
Region = Literal["subject"] | Tensor | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every method takes.

    Attributes:
        num_iterations: passes L.
        confidence_threshold: images that reach this target probability leave the batch; None runs all passes.
        seed: seed for all noise.
        progress: show a progress bar over passes and steps, on a terminal.
        region: where an image may change: "subject", a mask, or a function from the images to one; None means
            everywhere. Pixels where the mask is 0 stay bit-identical; between 0 and 1 they are mixed at every step, so
            that 0.5 keeps far more of the input than half.
    """

    num_iterations: int = 1
    confidence_threshold: float | None = None
    seed: int = 0
    progress: bool = True
    region: Region = None

    def __post_init__(self) -> None:
        """Refuse values of the wrong kind by the option's name, then values out of range."""
        check_fields(self)
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations={self.num_iterations}: at least one pass must run.")
        threshold = self.confidence_threshold
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"confidence_threshold={threshold} is a probability: use a value in (0, 1].")
        if not (self.region is None or isinstance(self.region, Tensor) or callable(self.region)):
            check_choice("region", self.region, Literal["subject"])

    def set_defaults(self, values: Mapping[str, Any]) -> None:
        """Give options that are None the values of a variant."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class ChainOptions(Options):
    """What every method with a diffusion model takes.

    Attributes:
        num_inference_steps: number n of kept steps.
        clip_denoised: clip predicted clean samples to the range of the space, if it has one, and each pass's output to
            [-1, 1]; takes precedence over the scheduler's setting.
        null_class_labels: index of the null class, which makes a class-conditional network unconditional.
    """

    num_inference_steps: int = 400
    clip_denoised: bool = True
    null_class_labels: int | None = None


@dataclass(frozen=True, kw_only=True)
class StrengthOptions(ChainOptions):
    """How far a method noises.

    Attributes:
        strength: fraction of the kept steps to noise and denoise; or one per pass, the last for all further passes.
        start_variant: "exact" noises to the first denoised step; "published_code" one kept step further.
    """

    strength: float | Sequence[float] = 0.3
    start_variant: StartVariant = "exact"

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strength of each pass."""
        return numbers(self.strength)

    def __post_init__(self) -> None:
        """Refuse an empty list of strengths."""
        super().__post_init__()
        if not self.strengths:
            raise ValueError("strength=(): give one strength, or one per pass.")


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(StrengthOptions):
    """What methods take that are guided by the classifier's gradient.

    Scales depend on the solver: a deterministic step moves about half as far as a stochastic one.

    Attributes:
        classifier_scales: values of lambda_c to try, in any order.
        perceptual_scale: lambda_p.
        class_loss: "cross_entropy" or "logit".
        class_labels: class that conditions a class-conditional network, or "target" for each image's own target; None
            uses its null class.
        guidance_scale: classifier-free guidance between ``class_labels`` and the null class; 1 is off.
        batched_scales: try all scales of a pass in one stacked batch instead of one after another. The result is the
            same, with fewer calls of the networks, but every image pays for every scale.
        guide_every: take the gradient at every n-th step, and reuse it in between.
    """

    classifier_scales: float | Sequence[float] = (40, 60, 80)
    perceptual_scale: float = 30
    class_loss: ClassLoss = "cross_entropy"
    class_labels: int | Literal["target"] | None = None
    guidance_scale: float = 1.0
    batched_scales: bool = False
    guide_every: int = 1

    @property
    def scales(self) -> tuple[float, ...]:
        """lambda_c in ascending order."""
        return tuple(sorted(numbers(self.classifier_scales)))

    def __post_init__(self) -> None:
        """Refuse negative scales and gradients that are never taken."""
        super().__post_init__()
        if not self.scales or not all(0 <= scale < math.inf for scale in self.scales):
            raise ValueError(f"classifier_scales={self.classifier_scales!r}: give at least one scale, none negative.")
        for name, least in (("perceptual_scale", 0.0), ("guidance_scale", 1.0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: use {least:g} or more.")
        if self.guide_every < 1:
            raise ValueError(
                f"guide_every={self.guide_every}: the gradient must be taken at least once: use 1 or more."
            )


@dataclass(frozen=True, kw_only=True)
class EditOptions(ChainOptions):
    """What methods take whose class comes from a conditional network; no gradients are computed.

    Attributes:
        guidance_scale: s in s eps(x, c) - (s - 1) eps(x, null), as everywhere in medcf, MONAI and diffusers; 1 runs the
            conditional network only, without the null condition; by default 3.
        guidance_w: the same in the paper's notation: w = s - 1 in ControlCG (eq. 5) and in Ho and Salimans (2022). Give
            only one of the two.
        keep_background: restore everything that is exactly -1 in the input and connected to its border, outside a
            skull-stripped brain. The published methods do not do this; they disregard differences outside the brain.
        subtract_reconstruction: run the chain a second time toward the input's own class (or prompt), with the same
            noise, and return the input plus the difference of the two results. What both runs change is not due to the
            class and cancels; toward its own class an input stays unchanged. This is ours, not from a paper. It doubles
            the cost, except for shared work.
        own_class: class of the inputs, for ``subtract_reconstruction`` and the source of the inversions; None takes
            what the classifier predicts for each.
        memory_budget: gigabytes (10^9 bytes) for the activations of one network call; images that do not fit together
            run one after another. "auto" uses the GPU's free memory, None sets no limit. The first call is measured.
    """

    num_inference_steps: int = 50
    null_class_labels: int | None = 2
    guidance_scale: float | None = None
    guidance_w: float | None = None
    keep_background: bool = True
    subtract_reconstruction: bool = False
    own_class: int | None = None
    memory_budget: MemoryBudget = None

    @property
    def scale(self) -> float:
        """The guidance scale s, however it was given."""
        if self.guidance_w is not None:
            return 1 + float(self.guidance_w)
        return 3.0 if self.guidance_scale is None else float(self.guidance_scale)

    def __post_init__(self) -> None:
        """Refuse a scale that is given twice or below 1, and a budget that is none."""
        super().__post_init__()
        check_budget(self.memory_budget)
        if self.own_class is not None and self.own_class < 0:
            raise ValueError(f"own_class={self.own_class} is not a class: give its index, from 0.")
        if self.guidance_scale is not None and self.guidance_w is not None:
            raise ValueError(
                f"guidance_scale={self.guidance_scale:g} and guidance_w={self.guidance_w:g} specify the same value "
                "twice (guidance_w = guidance_scale - 1): give one."
            )
        if not 1 <= self.scale < math.inf:
            raise ValueError(f"guidance_scale={self.scale:g}: use 1 (no guidance) or more.")


def option_of(inferer: Any, name: str, default: Any = None) -> Any:
    """Return an option of a method, whether it has ``options`` or plain attributes."""
    return getattr(getattr(inferer, "options", inferer), name, default)


def with_options(inferer: Any, **changes: Any) -> Any:
    """Return a copy of a method with other options, whether it has ``options`` or plain attributes."""
    if hasattr(inferer, "with_options"):
        return inferer.with_options(**changes)
    method = copy.copy(inferer)
    for name, value in changes.items():
        setattr(method, name, value)
    return method


def option_names(kind: type[Options]) -> set[str]:
    """Return the options that can be given."""
    return {field.name for field in fields(kind) if field.init}
