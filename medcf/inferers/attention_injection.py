# SPDX-License-Identifier: Apache-2.0
"""ControlCG (section 3): class-conditional generation that sees the input through self-attention."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from medcf.inferers.checks import check_inputs
from medcf.inferers.conditional import edit
from medcf.inferers.counterfactual import BatchState, Counterfactual
from medcf.inferers.method import Method
from medcf.inferers.options import EditOptions, StrengthOptions
from medcf.inferers.passes import Pass
from medcf.networks.attention_injection import AttentionInjection
from medcf.networks.denoiser import Network, References
from medcf.networks.stack import ReferenceCondition
from medcf.registry import METHODS
from medcf.sampling import Chain, noised, standard_noise
from medcf.schedulers import RespacedScheduler

__all__ = ["AttentionInjectionInferer", "ControlCGOptions"]


@dataclass(frozen=True, kw_only=True)
class ControlCGOptions(EditOptions, StrengthOptions):
    """Options of ControlCG.

    Attributes:
        strength: fraction of the kept steps to noise and denoise, or one per pass; 1 starts from pure noise instead of
            the noised image (paper).
        injection_scale: weight of the reference's tokens inside the softmax; the paper uses 1; 0 is classifier-free
            guidance only, at no cost for the reference.
        reference_noise: noise of y: "fresh" at each step; "shared", one map for all steps; "start", the map from which
            x started, so that below strength 1 both are equal at the first step.
        reference_condition: class of the reference: the "same" as that of the row that reads it (paper), or "null",
            which all targets and scales of an input share.
    """

    strength: float | Sequence[float] = 1.0
    injection_scale: float = 1.0
    reference_noise: Literal["fresh", "shared", "start"] = "fresh"
    reference_condition: ReferenceCondition = "same"

    def __post_init__(self) -> None:
        """Refuse weights that are none."""
        super().__post_init__()
        if not 0 <= self.injection_scale < math.inf:
            raise ValueError(f"injection_scale={self.injection_scale:g} is a weight: use 0 (no injection) or more.")


class AttentionInjectionInferer(Method):
    """Generate the target class with classifier-free guidance while self-attention also sees the noised input.

    At each step y_t = sqrt(A) y_0 + sqrt(1 - A) noise is stacked with x_t, and in each self-attention block the queries
    of x see the tokens of [x, y] (ControlCG, eq. 8; the concatenation is of tokens). All rows run in one network call,
    for one image [x|c, x|null, y|c, y|null] (eqs 5 and 9), or [x|c, x|null, y|null].
    """

    title = "ControlCG"
    Options = ControlCGOptions
    needs_gradients = False
    run_pass = edit
    _entered: AttentionInjection | None = None

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return the scheduler with the method's steps; refuse a null reference where there is no null."""
        options = self.options
        if options.injection_scale and options.reference_condition == "null" and self.conditioner.null() is None:
            raise ValueError("reference_condition='null' needs null_class_labels, the index of the null class.")
        return super().prepared(scheduler)

    def eager_reason(self) -> str | None:
        """Say that injection changes the network's attention."""
        return "injects into the network's attention" if self.options.injection_scale else super().eager_reason()

    def references(self, run: Pass, index: Tensor, chain: Chain) -> References | None:
        """Return the inputs, noised to each step by their own noise."""
        options = self.options
        if options.injection_scale == 0:
            return None
        source, first = self._sources(run.state, index)
        inputs = replace(
            chain,
            start=chain.original[first],
            ids=[chain.ids[i] for i in first],
            seeds=[chain.seeds[i] for i in first],
        )
        generators = inputs.generators("pass" if options.reference_noise == "start" else "reference")
        if options.reference_noise == "fresh":
            at = partial(noised, self.scheduler, inputs.start, generators=generators)
        else:
            at = partial(self._with_noise, inputs.start, standard_noise(inputs.start, generators))
        return References(at, source, self._injection(run.network), options.reference_condition)

    def reading(self, state: BatchState, index: Tensor) -> dict[str, Any]:
        """Return which input each image reads."""
        if self.options.injection_scale == 0:
            return {}
        return {"sources": self._sources(state, index)[0], "reference": self.options.reference_condition}

    def explain_targets(
        self,
        inputs: Tensor,
        network: Network,
        targets: Sequence[int],
        guidance_scales: Sequence[float] | None = None,
        sample_ids: Sequence[Hashable] | None = None,
        run_unchanged: bool = False,
    ) -> dict[tuple[int, float], Counterfactual]:
        """Explain the same images toward several targets, with several guidance scales, together.

        Shared work is done only once: the noised inputs and, with ``reference_condition="null"``, the reference's
        entire network call. Each result equals that of a separate run, because it uses the same noise. As many rows as
        fit the memory budget run in one network call.

        Args:
            inputs: images (B, C, *spatial) in [-1, 1].
            network: denoising network.
            targets: target classes, each for all images.
            guidance_scales: each for all targets; None uses the method's own.
            sample_ids: one identity per image to seed its noise; None uses a hash of its pixels.
            run_unchanged: also run images that are already in a target class.

        Returns:
            Counterfactuals of the batch by (target, guidance scale). Function evaluations that several of them share
            count for the first.

        Raises:
            ValueError: if there is no target, a target is repeated, or the inputs do not match.
        """
        scales = [self.options.scale] if guidance_scales is None else [float(s) for s in guidance_scales]
        pairs = [(int(target), scale) for target in targets for scale in scales]
        if not pairs or len(set(pairs)) != len(pairs):
            raise ValueError(
                f"targets={list(targets)} and guidance_scales={scales}: give at least one, without repetitions."
            )
        if not all(1 <= scale < math.inf for scale in scales):
            raise ValueError(f"guidance_scales={scales}: use 1 (no guidance) or more.")
        image, ids = check_inputs(self, inputs, network, sample_ids)
        count, batch, device = len(pairs), len(image), image.device
        result = self.advance(
            image.repeat_interleave(count, 0),
            [one for one in ids for _ in pairs],
            torch.tensor([target for target, _ in pairs], device=device).repeat(batch),
            network,
            run_unchanged,
            extras={
                "guidance_scale": torch.tensor([scale for _, scale in pairs], device=device).repeat(batch),
                "source": torch.arange(batch, device=device).repeat_interleave(count),
            },
        )
        return {pair: result.rows(slice(number, None, count)).like(inputs) for number, pair in enumerate(pairs)}

    def _sources(self, state: BatchState, index: Tensor) -> tuple[list[int], list[int]]:
        """Return, for each image, its place among the different inputs, and the first image of each of these."""
        inputs = state.inputs(index).tolist()
        places = {source: place for place, source in enumerate(dict.fromkeys(inputs))}
        return [places[source] for source in inputs], [inputs.index(source) for source in places]

    def _injection(self, network: Network) -> AttentionInjection:
        """Return the injection into the network, the same one each time, so that compiled code is reused."""
        known, scale = self._entered, self.options.injection_scale
        if known is None or known.scale != scale or not known.covers(network):
            self._entered = known = AttentionInjection(network, scale=scale)
        return known

    def _with_noise(self, image: Tensor, noise: Tensor, t: int) -> Tensor:
        alpha_bar = self.scheduler.alpha_bar(t)
        return alpha_bar**0.5 * image + (1 - alpha_bar) ** 0.5 * noise


METHODS.add("controlcg", "Class-conditional generation with attention injection (ControlCG)", AttentionInjectionInferer)
