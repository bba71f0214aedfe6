# SPDX-License-Identifier: Apache-2.0
"""High-order solvers of diffusers (UniPC, DPM-Solver++, Euler, PNDM) along any list of kept timesteps."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from monai.networks.schedulers import DDIMScheduler

from medcf.registry import SCHEDULERS
from medcf.runtime.choices import check_choice
from medcf.schedulers.base import RespacedScheduler
from medcf.schedulers.prediction import Prediction
from medcf.schedulers.step import Generators, Step

__all__ = ["DiffusersScheduler", "MultistepStep", "Solver"]

Solver = Literal["unipc", "dpmpp", "euler", "pndm"]

#: Cumulative alpha that stands for 0 inside diffusers, whose solvers would divide by it.
_LEAST_ALPHA_BAR = 1e-20


class _Kind(NamedTuple):
    class_name: str
    options: tuple[str, ...]
    integrates: Literal["original", "noise"] = "original"


_KINDS: dict[str, _Kind] = {
    "unipc": _Kind(
        "UniPCMultistepScheduler", ("solver_order", "solver_type", "lower_order_final", "disable_corrector")
    ),
    "dpmpp": _Kind(
        "DPMSolverMultistepScheduler", ("solver_order", "solver_type", "lower_order_final", "euler_at_final")
    ),
    "euler": _Kind("EulerDiscreteScheduler", ()),
    "pndm": _Kind("PNDMScheduler", (), "noise"),
}


class _Update(NamedTuple):
    """One step, next = scale * sample + Σ weights[j] * (prediction made j steps ago)."""

    scale: float
    weights: list[float]


@dataclass(eq=False)
class _Run:
    """A chain in progress: its timesteps, its updates from the first step on, and its predictions, latest first."""

    timesteps: Sequence[int]
    updates: list[_Update]
    done: int = 0
    history: list[torch.Tensor] = field(default_factory=list)

    @property
    def upcoming(self) -> int:
        """The timestep of the next call; -1 at the end."""
        return self.timesteps[self.done] if self.done < len(self.timesteps) else -1


@dataclass(frozen=True, eq=False)
class MultistepStep(Step):
    """A step of a solver that reads its earlier predictions; drawing from it writes the guided prediction into them.

    Arguments as in `Step`, and:

    Args:
        entry: what the solver integrates at this step, the predicted clean image or ε, (B, C, *spatial).
        effect: how far a unit gradient moves ``entry``: -(1 - A) / √A for the clean image, √(1 - A) for ε.
        history: earlier entries of the chain, latest first, starting with this step's.
    """

    entry: torch.Tensor
    effect: float
    history: list[torch.Tensor]

    def guide(self, gradient: torch.Tensor) -> Step:
        """Move the mean and the prediction as ε ← ε + √(1 - A) g does, see `Step.guide`."""
        guided = super().guide(gradient)
        return replace(guided, entry=self.entry + self.effect * gradient.to(self.entry.dtype))  # type: ignore[call-arg]

    def draw(self, generators: Generators = None) -> torch.Tensor:
        """Return the next sample, see `Step.draw`; later steps of the chain read this step's guided prediction."""
        self.history[0] = self.entry.detach()
        return super().draw(generators)


class DiffusersScheduler(RespacedScheduler, DDIMScheduler):  # type: ignore[misc]  # MONAI's step also takes eta
    """Deterministic solvers of diffusers, stepping between our kept timesteps and guided like DDIM.

    All of them are linear: the next sample is a combination of the sample and the latest predictions, with coefficients
    that depend only on the noise levels. diffusers' own ``step`` is run once per list of timesteps, on unit vectors in
    float64, to obtain these coefficients, and here they are applied. So noise levels and last step are the kept
    list's, no device is waited for, and samples are variance preserving for every solver (Euler works on x / √A).

    - ``"unipc"``: UniPC (Zhao et al. 2023, arXiv 2302.04867). Its corrector moves the sample of the previous step after
      the network has seen it; the move is added to the sample that the loop passes, so masks set by hooks persist.
    - ``"dpmpp"``: multistep DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095).
    - ``"euler"``: Euler's method in √((1 - A) / A) (Karras et al. 2022, arXiv 2206.00364). In exact arithmetic it is
      DDIM with η = 0.
    - ``"pndm"``: pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778), with Adams-Bashforth weights of order 1,
      2, 3 and 4 in the first four steps. diffusers calls the network a second time at the second timestep to improve
      the first step; here every kept timestep costs one call, so that step is DDIM's. The weights assume equal steps.

    The first step of a chain is of order 1 wherever it starts, and so is the last one with the default options.
    Guidance changes ε ← ε + √(1 - A) g at the current step, and the history keeps the guided prediction.

    The history belongs to a chain: ``denoise`` calls :meth:`for_chain`, which returns a copy without history. A
    scheduler used directly starts over whenever the timestep is not the successor of the last one.

    Args:
        args: see `RespacedScheduler`.
        solver: name of the solver.
        solver_options: options of diffusers' class: ``solver_order``, ``solver_type``, ``lower_order_final`` and, for
            UniPC, ``disable_corrector``, for DPM-Solver++, ``euler_at_final``.
        options: see `RespacedScheduler`. ``clip_sample`` clips the predicted clean image (ε follows) before the step.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if a name is unknown.
    """

    def __init__(
        self, *args: Any, solver: Solver = "unipc", solver_options: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        check_choice("solver", solver, Solver)
        super().__init__(*args, **options)
        self.solver, self.solver_options = solver, dict(solver_options or {})
        for name in self.solver_options:
            if name not in _KINDS[solver].options:
                known = ", ".join(_KINDS[solver].options) or "none"
                raise ValueError(f"{name!r} is not one of the `solver_options` of {solver!r}: {known}.")
        self._create_solver(1)  # names a missing package or a wrong value now, not at the first step
        self._updates: dict[tuple[float, ...], list[_Update]] = {}

    def keep(self, timesteps: Sequence[int], device: str | torch.device | None = None) -> None:
        """Choose the chain like `RespacedScheduler`; forgets the predictions made so far."""
        super().keep(timesteps, device)
        self._run: _Run | None = None

    def for_chain(self, timesteps: Sequence[int]) -> Self:
        """Return a copy without history, whose steps do not disturb this scheduler's chain, nor the reverse."""
        fresh = copy.copy(self)
        fresh._run = None
        return fresh

    def _create_solver(self, num_steps: int) -> Any:
        try:
            import diffusers
        except ImportError as error:
            raise ImportError(
                f"The solver {self.solver!r} needs diffusers. Run: python -m pip install 'medcf[diffusers]'"
            ) from error
        kind = _KINDS[self.solver]
        fixed = {"num_train_timesteps": num_steps, "prediction_type": "sample"}
        if self.solver == "pndm":
            fixed |= {"prediction_type": "epsilon", "skip_prk_steps": True}
        solver = getattr(diffusers, kind.class_name)(**fixed, **self.solver_options)
        solver.set_timesteps(num_steps)
        return solver

    def _updates_for(self, alpha_bars: tuple[float, ...]) -> list[_Update]:
        """Return the updates of a chain through these cumulative alphas, noisiest first, the last one its result's."""
        if alpha_bars not in self._updates:
            updates = _measure(self.solver, self._create_solver(len(alpha_bars) - 1), alpha_bars)
            if not all(math.isfinite(value) for update in updates for value in (update.scale, *update.weights)):
                raise ValueError(
                    f"{self.solver!r} with {self.solver_options} has no finite step between the cumulative alphas "
                    f"{alpha_bars[0]:.3g} and {alpha_bars[-1]:.3g}: leave `lower_order_final` on; where the noisiest "
                    "timestep holds no signal, choose unipc, dpmpp, euler or ddim."
                )
            self._updates[alpha_bars] = updates
        return self._updates[alpha_bars]

    def _started(self, timestep: int) -> _Run:
        chain = self._kept[: self.position(timestep) + 1][::-1]
        return _Run(chain, self._updates_for((*(self.alpha_bar(t) for t in chain), self._final_alpha_bar)))

    def _entry(self, original: torch.Tensor, noise: torch.Tensor, alpha_bar: float, sample: torch.Tensor) -> tuple:
        """Return what the solver integrates, and how far a unit gradient moves it."""
        if _KINDS[self.solver].integrates == "original":
            # Without any signal in the sample ε does not determine the clean image, so a change of ε does not move it.
            return original, -(1 - alpha_bar) / math.sqrt(alpha_bar) if alpha_bar > 0 else 0.0
        if self.clip_sample:
            noise = (sample.to(original.dtype) - math.sqrt(alpha_bar) * original) / math.sqrt(1 - alpha_bar)
        return noise, math.sqrt(1 - alpha_bar)

    def posterior(self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor) -> Step:
        """Return the sample at the previous kept timestep, see `RespacedScheduler`; appends to the chain's history.

        Returns:
            A step with variance 0. Its gain is the effect of ε ← ε + √(1 - A) g at this step on the mean; the effect on
            later steps follows from the history once the guided step is drawn.
        """
        t = int(timestep)
        if self._run is None or self._run.upcoming != t:
            self._run = self._started(t)
        run = self._run
        original = self._clipped(prediction.original)
        entry, effect = self._entry(original, prediction.noise, self.alpha_bar(t), sample)
        scale, weights = run.updates[run.done]
        run.history = [entry.detach(), *run.history][: max(len(update.weights) for update in run.updates)]
        run.done += 1
        mean = scale * sample.to(original.dtype) + weights[0] * entry
        for weight, earlier in zip(weights[1:], run.history[1:], strict=False):
            mean = mean + weight * earlier
        return MultistepStep(
            mean=mean,
            variance=0.0,
            gain=-weights[0] * effect,
            pred_original=original,
            sample=sample,
            timestep=t,
            entry=entry,
            effect=effect,
            history=run.history,
        )


def _measure(name: Solver, solver: Any, alpha_bars: Sequence[float]) -> list[_Update]:
    """Run a solver of diffusers on unit vectors: entry 0 of a vector counts the start, entry i + 1 prediction i."""
    steps = len(alpha_bars) - 1
    table = torch.tensor(alpha_bars, dtype=torch.float64)
    sigmas = ((1 - table) / table.clamp_min(_LEAST_ALPHA_BAR)).sqrt()
    if name == "pndm":  # counts timesteps down by one, so its table holds only the kept ones
        solver.alphas_cumprod, solver.final_alpha_cumprod = table[:-1].flip(0), table[-1]
    else:
        solver.sigmas = sigmas
        solver.set_begin_index(0)
    solver.is_scale_input_called = True  # of Euler, which otherwise warns that its input was not scaled
    growth = (1 + sigmas**2).sqrt() if name == "euler" else torch.ones_like(sigmas)
    unit = torch.eye(steps + 1, dtype=torch.float64).unsqueeze(1)
    sample, updates = unit[0], []
    for i in range(steps):
        timestep = steps - 1 - i if name == "pndm" else torch.tensor(float(steps - 1 - i))
        result = solver.step(unit[i + 1], timestep, sample * growth[i]).prev_sample / growth[i + 1]
        if name == "pndm" and i == 0:
            solver.counter += 1  # skips the second call at the second timestep
        scale = float(result[0, 0] / sample[0, 0])
        weights = (result - scale * sample)[0, 1 : i + 2].flip(0)
        updates.append(_Update(scale, weights[: _used(weights)].tolist()))
        # UniPC's corrector starts from the sample of the step before, so it needs to see its own chain; the others are
        # given a unit vector each time, which their cast to float32 does not round.
        sample = result if name == "unipc" else unit[0]
    return updates


def _used(weights: torch.Tensor) -> int:
    """Return how many of the latest predictions count; what remains of the others is rounding."""
    counting = (~(weights.abs() <= 1e-10)).nonzero()  # keeps NaN, so that it is noticed
    return int(counting.max()) + 1 if len(counting) else 1


SCHEDULERS.add("unipc", "UniPC, a predictor-corrector, by diffusers", partial(DiffusersScheduler, solver="unipc"))
SCHEDULERS.add("dpmpp", "DPM-Solver++, multistep, by diffusers", partial(DiffusersScheduler, solver="dpmpp"))
SCHEDULERS.add("euler", "Euler's method in sigma, by diffusers", partial(DiffusersScheduler, solver="euler"))
SCHEDULERS.add("pndm", "Pseudo linear multistep (PLMS), by diffusers", partial(DiffusersScheduler, solver="pndm"))
