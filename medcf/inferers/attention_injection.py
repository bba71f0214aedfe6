# SPDX-License-Identifier: Apache-2.0
"""ControlCG (section 3): class-conditional generation that sees the input through self-attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from monai.utils import convert_to_dst_type

from medcf.inferers.checks import check_choice, check_numbers
from medcf.inferers.conditional import ConditionalInferer
from medcf.inferers.counterfactual import BatchState, Counterfactual
from medcf.networks.attention_injection import AttentionInjection
from medcf.networks.denoiser import Network
from medcf.registry import METHODS
from medcf.runtime.progress import Progress
from medcf.sampling import make_generators, standard_noise
from medcf.sampling.rows import InjectedDenoiser, ReferenceCondition, ReferenceNoise, Rows, plan_rows

__all__ = ["AttentionInjectionInferer"]


class AttentionInjectionInferer(ConditionalInferer):
    """Generate the target class with classifier-free guidance while self-attention also sees the noised input.

    At each step y_t = sqrt(A) y_0 + sqrt(1 - A) noise is stacked with x_t, and in each self-attention block the queries
    of x see the tokens of [x, y] (ControlCG, eq. 8; the concatenation is of tokens). All rows run in one network call,
    for one image [x|c, x|null, y|c, y|null] (eqs 5 and 9), or [x|c, x|null, y|null].

    Args:
        args: scheduler, classifier and target, see ``ConditionalInferer``.
        injection_scale: weight of the reference's tokens inside the softmax; the paper uses 1; 0 is classifier-free
            guidance only, at no cost for the reference.
        reference_noise: noise of y: "fresh" at each step; "shared", one map for all steps; "start", the map from which
            x started, so that below strength 1 both are equal at the first step.
        reference_condition: class of the reference: the "same" as that of the row that reads it (paper), or "null",
            which all targets and scales of an input share.
        options: see ``ConditionalInferer``, also for errors.
    """

    title = "ControlCG"

    def __init__(
        self,
        *args: Any,
        injection_scale: float = 1.0,
        reference_noise: ReferenceNoise = "fresh",
        reference_condition: ReferenceCondition = "same",
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        check_choice("reference_noise", reference_noise, ReferenceNoise)
        check_choice("reference_condition", reference_condition, ReferenceCondition)
        check_numbers(injection_scale=injection_scale)
        if not 0 <= injection_scale < math.inf:
            raise ValueError(f"injection_scale={injection_scale:g} is a weight: use 0 (no injection) or more.")
        if injection_scale > 0 and reference_condition == "null" and self.null_class_labels is None:
            raise ValueError("reference_condition='null' needs null_class_labels, the index of the null class.")
        self.injection_scale = float(injection_scale)
        self.reference_noise: ReferenceNoise = reference_noise
        self.reference_condition: ReferenceCondition = reference_condition
        self._entered: AttentionInjection | None = None

    def explain_targets(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
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
        scales = [self.guidance_scale] if guidance_scales is None else [float(s) for s in guidance_scales]
        pairs = [(int(target), scale) for target in targets for scale in scales]
        if not pairs or len(set(pairs)) != len(pairs):
            raise ValueError(
                f"targets={list(targets)} and guidance_scales={scales}: give at least one, without repetitions."
            )
        if not all(1 <= scale < math.inf for scale in scales) or (max(scales) > 1 and self.null_class_labels is None):
            raise ValueError(
                f"guidance_scales={scales}: use 1 (no guidance) or more; values above 1 need null_class_labels."
            )
        image, ids = self._check_inputs(inputs, network, sample_ids)
        count, batch, device = len(pairs), len(image), image.device
        extras = {
            "guidance_scale": torch.tensor([scale for _, scale in pairs], device=device).repeat(batch),
            "source": torch.arange(batch, device=device).repeat_interleave(count),
        }
        result = self._explain(
            image.repeat_interleave(count, 0),
            [one for one in ids for _ in pairs],
            torch.tensor([target for target, _ in pairs], device=device).repeat(batch),
            network,
            run_unchanged,
            extras,
        )
        return {pair: _every(result, number, count, inputs) for number, pair in enumerate(pairs)}

    def _edit(self, state: BatchState, chosen: list[int], number: int, network: Network, bar: Progress) -> torch.Tensor:
        index = torch.tensor(chosen, device=state.current.device)
        with self._injection(network) as injection:
            denoiser = self._injected(state, chosen, number, network, injection)
            image = self._denoised(self._chain(state, index, number, denoiser), (), bar)
        state.evaluations[index] += denoiser.num_function_evaluations.to(image.device)
        return image

    def _num_rows(self, state: BatchState, chosen: Sequence[int]) -> int:
        return len(self._rows(state, chosen)[0])

    def _probe(self, state: BatchState, chosen: list[int], network: Network) -> Callable[[], object]:
        def forward() -> None:
            with self._injection(network) as injection:
                denoiser = self._injected(state, chosen, 0, network, injection)
                denoiser(state.current[chosen], self._schedule(0)[0][0])

        return forward

    @contextmanager
    def _injection(self, network: Network) -> Iterator[AttentionInjection | None]:
        """Activate the injection into the network, reusing the same one each time; None without an injection."""
        if self.injection_scale == 0:
            yield None
            return
        known = self._entered
        if known is None or known.scale != self.injection_scale or not known.covers(network):
            self._entered = known = AttentionInjection(network, scale=self.injection_scale)
        with known as injection:
            yield injection

    def _rows(self, state: BatchState, chosen: Sequence[int]) -> tuple[Rows, list[int], list[float]]:
        """Return the layout of a stack, the inputs of its edits, and their guidance scales."""
        sources, scales = list(chosen), [self.guidance_scale] * len(chosen)
        if "source" in state.extras:
            sources = state.extras["source"][list(chosen)].tolist()
            scales = state.extras["guidance_scale"][list(chosen)].tolist()
        rows = plan_rows(
            sources,
            state.target[list(chosen)].tolist(),
            [scale != 1 for scale in scales],
            null_class_labels=self.null_class_labels,
            reference=self.reference_condition if self.injection_scale else None,
        )
        return rows, sources, scales

    def _injected(
        self, state: BatchState, chosen: list[int], number: int, network: Network, injection: AttentionInjection | None
    ) -> InjectedDenoiser:
        rows, sources, scales = self._rows(state, chosen)
        first = [chosen[sources.index(source)] for source in dict.fromkeys(sources)]
        references = state.original[first]
        ids = [state.ids[i] for i in first]
        stream = "pass" if self.reference_noise == "start" else "reference"
        generators = make_generators(self.seed, ids, references.device, (stream, number))
        noise = None if self.reference_noise == "fresh" else standard_noise(references, generators)
        options: dict[str, Any] = {"generators": generators, "noise": noise, "injection": injection}
        return InjectedDenoiser(network, self.scheduler, rows, scales, references, **options)


def _every(result: Counterfactual, number: int, count: int, inputs: torch.Tensor) -> Counterfactual:
    """Return every ``count``-th entry of a result, starting with ``number``; its image has the type of the inputs."""
    parts = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "extras"}
    extras = {name: value[number::count] for name, value in result.extras.items()}
    part = Counterfactual(**{name: value[number::count] for name, value in parts.items()}, extras=extras)
    return replace(part, image=convert_to_dst_type(part.image, inputs, dtype=torch.float32)[0])


METHODS.add("controlcg", "Classifier-free guidance with attention injection (ControlCG)", AttentionInjectionInferer)
