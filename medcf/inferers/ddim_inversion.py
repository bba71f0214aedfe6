# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: encode the image to noise as its own class, then decode it as another one (Song et al. 2021)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from medcf.inferers.checks import check_choice, check_numbers, check_scheduler
from medcf.inferers.conditional import ConditionalInferer
from medcf.inferers.counterfactual import BatchState
from medcf.networks.denoiser import Denoiser, Network
from medcf.registry import METHODS
from medcf.runtime.progress import Progress
from medcf.sampling import denoise
from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedScheduler

__all__ = ["DDIMInversionInferer", "SourceCondition"]

SourceCondition = Literal["predicted", "null"]

logger = logging.getLogger(__name__)


class DDIMInversionInferer(ConditionalInferer):
    """Walk the deterministic chain up under the source class, then down under the target class with guidance.

    A baseline in ControlCG (DDIM_250 and DDIM_500). No noise is drawn: the result depends only on the input. The
    inversion's own contribution to the difference is measured before the edit: the same noise is decoded under the
    source class without guidance, which would return the input if the inversion were exact. This error is logged per
    image and kept in ``Counterfactual.extras["round_trip_error"]``; NaN if none ran.

    Args:
        scheduler: only its noise schedule is used: both directions are DDIM without noise.
        args: classifier, which also determines the source class, and target, see ``ConditionalInferer``.
        depth: fraction of the chain to invert; 1 goes up to pure noise.
        num_inversion_steps: kept steps of the full chain on the way up; None uses ``num_inference_steps``.
        inversion_iterations: evaluations per step on the way up. 1 is the usual explicit step, with an error of
            O(1 / steps); more solve the implicit step (Pan et al. 2023, arXiv 2309.04907).
        source_condition: class on the way up: the one "predicted" by the classifier, or the "null" class.
        measure_round_trip: measure the error of the inversion, at the cost of another way down.
        options: see ``ConditionalInferer``, also for errors.
    """

    title = "DDIM inversion"
    fixed_options: ClassVar[frozenset[str]] = frozenset(
        {"strength", "start_variant", "clip_denoised", "subtract_reconstruction"}
    )

    def __init__(
        self,
        scheduler: RespacedScheduler,
        *args: Any,
        depth: float = 1.0,
        num_inversion_steps: int | None = None,
        inversion_iterations: int = 1,
        source_condition: SourceCondition = "predicted",
        measure_round_trip: bool = True,
        **options: Any,
    ) -> None:
        check_choice("source_condition", source_condition, SourceCondition)
        check_numbers(depth=depth)
        check_numbers(num_inversion_steps=num_inversion_steps, inversion_iterations=inversion_iterations, whole=True)
        if not 0 < depth <= 1:
            raise ValueError(f"depth={depth} is a fraction of the chain: use a value in (0, 1].")
        if inversion_iterations < 1:
            raise ValueError(f"inversion_iterations={inversion_iterations}: each step needs at least one evaluation.")
        check_scheduler(scheduler)
        solver = RespacedDDIMScheduler().copy_schedule(scheduler)
        fixed: dict[str, Any] = {"clip_denoised": False, "subtract_reconstruction": False}
        super().__init__(solver, *args, strength=depth, **fixed, **options)
        if source_condition == "null" and self.null_class_labels is None:
            raise ValueError("source_condition='null' needs null_class_labels, the index of the null class.")
        self.inversion_iterations = inversion_iterations
        self.source_condition: SourceCondition = source_condition
        self.measure_round_trip = measure_round_trip
        self.inverse = DDIMInverseScheduler().copy_schedule(self.scheduler)
        self.inverse.set_timesteps(num_inversion_steps or len(self.scheduler.kept))
        top = self.timesteps[0]  # both directions meet here, whatever their numbers of steps
        self.inverse.keep([*(t for t in self.inverse.kept if t < top), top])

    def _num_steps(self) -> int:
        decoded = len(self.timesteps) * (2 if self.measure_round_trip else 1)
        return self.num_iterations * (len(self.inverse.kept) * self.inversion_iterations + decoded)

    def _iterate(self, state: BatchState, network: Network, bar: Progress) -> None:
        if self.measure_round_trip:
            state.extras["round_trip_error"] = torch.full_like(state.confidence, float("nan"))
        super()._iterate(state, network, bar)

    def _edit(self, state: BatchState, chosen: list[int], number: int, network: Network, bar: Progress) -> torch.Tensor:
        index = torch.tensor(chosen, device=state.current.device)
        start = state.current[index]
        source = self._denoiser(network, self._source(start), guidance_scale=1.0)
        noise = self._invert(source, start, bar)
        errors = None
        if self.measure_round_trip:
            back = denoise(source, self.scheduler, noise, self.timesteps, progress=bar)
            errors = self._differences(back, start, state.original[index])
            state.extras["round_trip_error"][index] = errors
            logger.info("Round-trip error before the edit: %s", _figures([state.ids[i] for i in chosen], errors))
        denoiser = self._denoiser(network, state.target[index])
        image = denoise(denoiser, self.scheduler, noise, self.timesteps, progress=bar)
        state.evaluations[index] += source.num_function_evaluations + denoiser.num_function_evaluations
        if errors is not None:
            edits = self._differences(image, start, state.original[index])
            large = (errors > edits).nonzero()[:, 0].tolist()
            if large:
                logger.warning(
                    "The round-trip error exceeds the edit, so the difference says little: %s. Use more steps, more "
                    "inversion_iterations, or less depth.",
                    _figures([state.ids[chosen[i]] for i in large], errors[large]),
                )
        return image

    def _source(self, image: torch.Tensor) -> torch.Tensor:
        """Return the class (N,) under which images are inverted."""
        if self.source_condition == "predicted":
            return self._logits(image).argmax(1)
        return torch.full((len(image),), int(self.null_class_labels or 0), device=image.device)

    def _invert(self, denoiser: Denoiser, sample: torch.Tensor, bar: Progress) -> torch.Tensor:
        for t in self.inverse.kept:
            candidate = sample
            for _ in range(self.inversion_iterations):
                candidate = self.inverse.posterior(denoiser(candidate, t), t, sample).mean
                bar.update(1)
            sample = candidate
        return sample

    def _differences(self, image: torch.Tensor, start: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Return the mean absolute difference (N,) from the start, as the user will see it."""
        return (self._finish(image, original) - start).abs().flatten(1).mean(1)


def _figures(ids: Sequence[Any], errors: torch.Tensor) -> str:
    return ", ".join(f"{str(one)[:16]} {error:.4f}" for one, error in zip(ids, errors.tolist(), strict=True))


METHODS.add("ddim_inversion", "DDIM inversion and guided decoding (Song et al. 2021)", DDIMInversionInferer)
