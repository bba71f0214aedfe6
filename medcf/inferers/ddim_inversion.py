# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: encode the image into its noise as its own class, decode the noise as another (Song et al. 2021)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from medcf.inferers.checks import check_choice, check_numbers, check_scheduler
from medcf.inferers.conditional import ConditionalInferer
from medcf.inferers.counterfactual import Iterates
from medcf.networks.denoiser import Denoiser
from medcf.registry import METHODS
from medcf.sampling import denoise
from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler

__all__ = ["DDIMInversionInferer", "SourceCondition"]

SourceCondition = Literal["predicted", "null"]

logger = logging.getLogger(__name__)


class DDIMInversionInferer(ConditionalInferer):
    """Walks the deterministic chain up under the source class, then down under the target class with guidance.

    A baseline of ControlCG (its DDIM_250 and DDIM_500). No noise is drawn: the result depends on the input alone. How
    much of the difference is the inversion's own error is measured before the edit: the same noise is decoded under
    the source class without guidance, which would be the input if the inversion were exact. That error per image is
    logged, and kept in ``Counterfactual.extras["round_trip_error"]``; NaN where none ran.

    Args:
        scheduler: only its noise schedule counts: both ways are DDIM without noise.
        args: classifier, which also names the source class, and target, as ``ConditionalInferer`` takes them.
        depth: share of the chain that is inverted; 1 goes up to pure noise.
        num_inversion_steps: kept steps of the way up, of the full chain; None takes ``num_inference_steps``.
        inversion_iterations: evaluations at each step up. 1 is the usual explicit step, which errs by O(1 / steps);
            more solve the implicit step (Pan et al. 2023, arXiv 2309.04907).
        source_condition: class of the way up: the one that the classifier "predicted", or the "null" class.
        measure_round_trip: measure the error of the inversion, at the cost of one more way down.
        options: see ``ConditionalInferer``, also for errors.
    """

    title = "DDIM inversion"
    fixed_options: ClassVar[frozenset[str]] = frozenset(
        {"strength", "start_variant", "clip_denoised", "subtract_reconstruction"}
    )

    def __init__(
        self,
        scheduler: Any,
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
            raise ValueError(f"depth={depth} is a share of the chain: use a value in (0, 1].")
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
        top = self.timesteps[0]  # both ways meet here, whatever their numbers of steps
        self.inverse.keep([*(t for t in self.inverse.kept if t < top), top])

    def _num_steps(self) -> int:
        decoded = len(self.timesteps) * (2 if self.measure_round_trip else 1)
        return self.num_iterations * (len(self.inverse.kept) * self.inversion_iterations + decoded)

    def _iterate(self, state: Iterates, network: Any, bar: Any) -> None:
        if self.measure_round_trip:
            state.extras["round_trip_error"] = torch.full_like(state.confidence, float("nan"))
        super()._iterate(state, network, bar)

    def _edit(self, state: Iterates, chosen: list[int], number: int, network: Any, bar: Any) -> torch.Tensor:
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

    def _invert(self, denoiser: Denoiser, sample: torch.Tensor, bar: Any) -> torch.Tensor:
        for t in self.inverse.kept:
            candidate = sample
            for _ in range(self.inversion_iterations):
                candidate = self.inverse.posterior(denoiser(candidate, t), t, sample).mean
                bar.update(1)
            sample = candidate
        return sample

    def _differences(self, image: torch.Tensor, start: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Return the mean absolute difference (N,) to the start, as the user will see it."""
        return (self._finish(image, original) - start).abs().flatten(1).mean(1)


def _figures(ids: Sequence[Any], errors: torch.Tensor) -> str:
    return ", ".join(f"{str(one)[:16]} {error:.4f}" for one, error in zip(ids, errors.tolist(), strict=True))


METHODS.add("ddim_inversion", "DDIM inversion and guided decoding (Song et al. 2021)", DDIMInversionInferer)
