# SPDX-License-Identifier: Apache-2.0
"""The base of all classifier-guided methods: loss, search over scales, hooks.

A method is a subclass that returns the hooks that guide a chain (``_make_hooks``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from medcf.guidance import CounterfactualLoss
from medcf.guidance.loss import Features
from medcf.inferers.chain import ChainInferer
from medcf.inferers.checks import Target, check_numbers
from medcf.inferers.counterfactual import BatchState
from medcf.networks.denoiser import Denoiser, Network
from medcf.runtime.progress import Progress
from medcf.sampling import Chain, Hook
from medcf.schedulers import RespacedScheduler

__all__ = ["ClassLoss", "GuidedInferer", "Variant"]

#: A method as described in its paper, or as run in its authors' repository.
Variant = Literal["paper", "published_code"]
ClassLoss = Literal["cross_entropy", "logit"]


class GuidedInferer(ChainInferer):
    """Guided chains that use the smallest classifier scale that reaches the target.

    In each pass the scales are tried in ascending order, and only images that have not reached the target class go on
    to the next one; if no scale flips an image, the pass keeps its most confident result. All scales of a pass share
    the noise (same start, same draws); each pass has new noise. It depends only on (seed, sample id, pass), so neither
    batch nor order changes a result. Loss and scheduler work in float32; phi of the originals is computed once per
    call.

    Args:
        scheduler: a scheduler from ``medcf.schedulers``; copied, not modified. Scales depend on the solver: a
            deterministic step moves about half as far as a stochastic one.
        classifier: f, images in [-1, 1] to logits (B, K).
        target: target class y, for all images or one per image.
        perceptual: phi, such as ``PerceptualFeatures``; None omits the proximity term.
        classifier_scales: values of lambda_c to try, in any order.
        perceptual_scale: lambda_p.
        class_loss: "cross_entropy" or "logit".
        class_labels: class that conditions a class-conditional network; None uses its null class.
        null_class_labels: index of the null class, which makes a class-conditional network unconditional.
        guidance_scale: classifier-free guidance between ``class_labels`` and the null class; 1 is off.
        batched_scales: try all scales of a pass in one stacked batch instead of one after another. The result is the
            same, with fewer calls of the networks, but every image pays for every scale.
        guide_every: take the gradient at every n-th step, and reuse it in between.
        options: see ``ChainInferer``.

    Raises:
        ValueError: if an option is unknown, out of range, or contradicts another.
    """

    def __init__(
        self,
        scheduler: RespacedScheduler,
        classifier: Callable[[torch.Tensor], torch.Tensor],
        target: Target,
        perceptual: Callable[[torch.Tensor], Features] | None = None,
        *,
        classifier_scales: float | Sequence[float] = (40, 60, 80),
        perceptual_scale: float = 30,
        class_loss: ClassLoss = "cross_entropy",
        class_labels: int | None = None,
        null_class_labels: int | None = None,
        guidance_scale: float = 1.0,
        batched_scales: bool = False,
        guide_every: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(scheduler, classifier, target, **options)
        scales = (classifier_scales,) if isinstance(classifier_scales, int | float | str) else classifier_scales
        for scale in scales:
            check_numbers(classifier_scales=scale)
        check_numbers(perceptual_scale=perceptual_scale, guidance_scale=guidance_scale)
        check_numbers(guide_every=guide_every, whole=True)
        self.classifier_scales = tuple(sorted(float(scale) for scale in scales))
        if not self.classifier_scales or self.classifier_scales[0] < 0:
            raise ValueError(f"classifier_scales={classifier_scales!r}: give at least one scale, none negative.")
        if guide_every < 1:
            raise ValueError(f"guide_every={guide_every}: the gradient must be taken at least once: use 1 or more.")
        self.perceptual = perceptual
        self.loss = CounterfactualLoss(classifier, perceptual, self.classifier_scales[0], perceptual_scale, class_loss)
        self.batched_scales = batched_scales
        self.guide_every = guide_every
        self.conditioning: dict[str, Any] = {
            "class_labels": null_class_labels if class_labels is None else class_labels,
            "null_class_labels": null_class_labels,
            "guidance_scale": guidance_scale,
        }

    @abstractmethod
    def _make_hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return the hooks that guide a chain; its loss is ``chain.guidance()``."""

    def _networks(self) -> tuple[Any, ...]:
        return (self.classifier, self.perceptual)

    def _iterate(self, state: BatchState, network: Network, bar: Progress) -> None:
        denoiser: Any = Denoiser(network, self.scheduler, **self.conditioning)
        if not bool(state.unchanged.all()):
            state.features = self.loss.features(state.original)
        super()._iterate(state, denoiser, bar)

    def _run_pass(self, state: BatchState, indices: torch.Tensor, number: int, network: Any, bar: Progress) -> None:
        """Advance the given images by one pass, each with the smallest scale that brings it to the target class.

        ``network`` is the denoiser created by ``_iterate``.
        """
        start = state.current.clone()
        kept = torch.full_like(state.confidence, -1.0)
        scales = self.classifier_scales
        rounds = [scales] if self.batched_scales else [(scale,) for scale in scales]
        for attempt, stacked in enumerate(rounds):
            if attempt:
                bar.total += len(self._schedule(number)[0])
            before = network.num_function_evaluations
            image = self._guided_chain(state, start[indices], indices, number, stacked, network, bar)
            state.evaluations[indices] += (network.num_function_evaluations - before) * len(stacked)
            waiting = torch.ones_like(indices, dtype=torch.bool)
            for scale, candidate in zip(stacked, image.chunk(len(stacked)), strict=True):
                confidence, hit = self._judge(candidate, state.target[indices])
                better = waiting & (hit | (confidence > kept[indices]))
                chosen = indices[better]
                state.current[chosen] = candidate[better]
                state.confidence[chosen] = kept[chosen] = confidence[better]
                state.flipped[chosen] = hit[better]
                state.scale[chosen] = scale
                waiting = waiting & ~hit
            indices = indices[waiting]
            if not len(indices):
                break

    def _guided_chain(
        self,
        state: BatchState,
        start: torch.Tensor,
        indices: torch.Tensor,
        number: int,
        scales: Sequence[float],
        denoiser: Denoiser,
        bar: Progress,
    ) -> torch.Tensor:
        """Run the images at each scale: (len(scales) * N, C, *spatial), all images of the first scale first."""
        count = len(scales)
        rows = indices.repeat(count)
        scale: float | torch.Tensor = scales[0]
        if count > 1:
            scale = torch.tensor(scales, device=start.device).repeat_interleave(len(indices))
        features = None if state.features is None else [layer[rows] for layer in state.features]
        loss = self.loss.bind(state.original[rows], state.target[rows], scale, features)
        stacked = start.repeat(count, *[1] * (start.ndim - 1))
        chain = replace(self._chain(state, rows, number, denoiser), start=stacked, loss=loss)
        return self._run_chain(chain, self._make_hooks(chain), bar)
