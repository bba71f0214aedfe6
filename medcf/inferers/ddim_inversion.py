# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: encode the image to noise as its own class, then decode it as another one (Song et al. 2021)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from medcf.inferers.conditional import edit, finished, own_class
from medcf.inferers.method import Method
from medcf.inferers.options import EditOptions
from medcf.inferers.passes import Pass
from medcf.networks.denoiser import Denoiser
from medcf.registry import METHODS
from medcf.runtime.progress import Progress
from medcf.sampling import Chain, Hook, denoise
from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedScheduler, Step

__all__ = ["DDIMInversionInferer", "DDIMInversionOptions", "SourceCondition", "check_source", "source_denoiser"]

SourceCondition = Literal["predicted", "null"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DDIMInversionOptions(EditOptions):
    """Options of DDIM inversion.

    Attributes:
        depth: fraction of the chain to invert; 1 goes up to pure noise.
        num_inversion_steps: kept steps of the full chain on the way up; None uses ``num_inference_steps``.
        inversion_iterations: evaluations per step on the way up. 1 is the usual explicit step, with an error of
            O(1 / steps); more solve the implicit step (Pan et al. 2023, arXiv 2309.04907).
        source_condition: class on the way up: the image's own, "predicted" by the classifier (see ``own_class``), or
            the "null" class.
        measure_round_trip: measure the error of the inversion, at the cost of another way down.
    """

    depth: float = 1.0
    num_inversion_steps: int | None = None
    inversion_iterations: int = 1
    source_condition: SourceCondition = "predicted"
    measure_round_trip: bool = True
    clip_denoised: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Refuse a depth that is no fraction."""
        super().__post_init__()
        if not 0 < self.depth <= 1:
            raise ValueError(f"depth={self.depth} is a fraction of the chain: use a value in (0, 1].")
        if self.inversion_iterations < 1:
            raise ValueError(
                f"inversion_iterations={self.inversion_iterations}: each step needs at least one evaluation."
            )


class DDIMInversionInferer(Method):
    """Walk the deterministic chain up under the source class, then down under the target class with guidance.

    A baseline in ControlCG (DDIM_250 and DDIM_500). No noise is drawn: the result depends only on the input, and of the
    scheduler only its noise schedule is used. The inversion's own contribution to the difference is measured before the
    edit: the same noise is decoded under the source class without guidance, which would return the input if the
    inversion were exact. This error is logged per image and kept in ``Counterfactual.extras["round_trip_error"]``; NaN
    if none ran.
    """

    title = "DDIM inversion"
    Options = DDIMInversionOptions
    needs_gradients = False
    run_pass = edit

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return DDIM with the scheduler's noise schedule; both directions meet at its depth."""
        check_source(self)
        solver = super().prepared(RespacedDDIMScheduler().copy_schedule(scheduler))
        self.inverse = DDIMInverseScheduler().copy_schedule(solver)
        steps = self.options.num_inversion_steps
        self.inverse.set_timesteps(len(solver.kept) if steps is None else steps)
        top = solver.timesteps_from(self.options.depth)[0]  # whatever the numbers of steps of the two directions
        self.inverse.keep([*(t for t in self.inverse.kept if t < top), top])
        return solver

    def schedule(self, number: int) -> tuple[list[int], int | None]:
        """Return the steps down from the depth."""
        return self.scheduler.timesteps_from(self.options.depth), None

    def num_steps(self) -> int:
        """Return the number of steps up and down."""
        options = self.options
        decoded = len(self.schedule(0)[0]) * (2 if options.measure_round_trip else 1)
        return int(options.num_iterations * (len(self.inverse.kept) * options.inversion_iterations + decoded))

    def start(self, run: Pass, index: Tensor, chain: Chain) -> tuple[Tensor | None, list[Hook]]:
        """Return the inverted samples, and a hook that compares the edit with the error of the inversion."""
        state = run.state
        source = source_denoiser(run, index)
        noise = self._invert(source, chain.start, run.bar)
        hooks: list[Hook] = []
        if self.options.measure_round_trip:
            if "round_trip_error" not in state.extras:
                state.extras["round_trip_error"] = torch.full_like(state.confidence, float("nan"))
            back = denoise(source, self.scheduler, noise, chain.timesteps, progress=run.bar)
            differences = partial(self._differences, chain=chain, run=run, index=index)
            errors = differences(back)
            state.extras["round_trip_error"][index] = errors
            logger.info("Round-trip error before the edit: %s", _figures(chain, errors))
            if "own" in state.extras:  # toward its own class, an image is not edited
                errors = errors.masked_fill(state.extras["own"][index], float("nan"))
            hooks.append(_Compare(chain, errors, differences))
        state.count(index, source.num_function_evaluations)
        return noise, hooks

    def _invert(self, denoiser: Denoiser, sample: Tensor, bar: Progress) -> Tensor:
        for t in self.inverse.kept:
            candidate = sample
            for _ in range(self.options.inversion_iterations):
                candidate = self.inverse.posterior(denoiser(candidate, t), t, sample).mean
                bar.update(1)
            sample = candidate
        return sample

    def _differences(self, sample: Tensor, chain: Chain, run: Pass, index: Tensor) -> Tensor:
        """Return the mean absolute difference (N,) from the start, as the user will see it."""
        decode = self.space.decoder(run.state.current[index], chain.start)
        image = finished(self, decode(sample), run.state, index)
        return (image - run.state.current[index]).abs().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class _Compare(Hook):
    """Warn, at the last step, of images whose edit is smaller than the error of their inversion."""

    chain: Chain
    errors: Tensor
    differences: Callable[[Tensor], Tensor]

    def after_step(self, sample: Tensor, step: Step) -> Tensor:
        """Return the samples as they are."""
        if step.timestep == self.chain.timesteps[-1] and bool((large := self.errors > self.differences(sample)).any()):
            logger.warning(
                "The round-trip error exceeds the edit, so the difference says little: %s. Use more steps, more "
                "inversion_iterations, or less depth.",
                _figures(self.chain, torch.where(large, self.errors, float("nan"))),
            )
        return sample


def check_source(method: Method) -> None:
    """Refuse the null class as the source where there is none."""
    if method.options.source_condition == "null" and method.conditioner.null() is None:
        raise ValueError("source_condition='null' needs null_class_labels, the index of the null class.")


def source_denoiser(run: Pass, index: Tensor, scale: float = 1.0) -> Denoiser:
    """Return the network with the condition under which the images ``index`` are inverted."""
    method, inputs = run.method, run.state.inputs(index)
    if method.options.source_condition == "null":
        return run.denoiser(index, method.conditioner.unconditional(inputs))
    own = own_class(method, run.state.current[index])
    return run.denoiser(index, method.conditioner(own, scale, inputs, torch.ones_like(own, dtype=torch.bool)))


def _figures(chain: Chain, errors: Tensor) -> str:
    pairs = zip(chain.ids, errors.tolist(), strict=True)
    return ", ".join(f"{str(one)[:16]} {error:.4f}" for one, error in pairs if error == error)


METHODS.add("ddim_inversion", "DDIM inversion and guided decoding (Song et al. 2021)", DDIMInversionInferer)
