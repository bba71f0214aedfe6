# SPDX-License-Identifier: Apache-2.0
"""PNDM as Stable Diffusion's pipelines run it, with a second network call for the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from medcf.registry import SCHEDULERS
from medcf.runtime.choices import check_choice
from medcf.schedulers.base import StartVariant
from medcf.schedulers.diffusers_solver import DiffusersScheduler, _Run, _Update, _used
from medcf.schedulers.spacing import SpacingRule

__all__ = ["PLMSScheduler"]


class PLMSScheduler(DiffusersScheduler):
    """diffusers' ``PNDMScheduler`` with ``skip_prk_steps``, step by step (Liu et al. 2022, arXiv 2202.09778).

    A chain from pure noise visits the second timestep twice: the second call improves the first step. An image-to-image
    pipeline cuts that list to its last K + 1 entries. The chain then starts at kept step K + 1 instead of K, calls the
    network K + 1 times, and no timestep occurs twice. diffusers improves the first step all the same, so the network is
    given the sample at every later call with the timestep below its noise level. This is reproduced here, because the
    results of published checkpoints come from it; ``"pndm"`` is the solver without it.

    Args:
        args: see `RespacedScheduler`.
        spacing: as there; "leading" is Stable Diffusion's, with ``steps_offset`` 1.
        options: as there. ``strength_rule="truncated"`` counts the steps of a strength as the pipelines do.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if a name is unknown.

    Example:
        >>> scheduler = PLMSScheduler(spacing="leading", steps_offset=1, strength_rule="truncated")
        >>> scheduler.set_timesteps(75)
        >>> scheduler.timesteps_from(0.55)[:3], len(scheduler.timesteps_from(0.55))
        ([534, 521, 508], 42)
    """

    def __init__(self, *args: Any, spacing: SpacingRule = "leading", **options: Any) -> None:
        super().__init__(*args, solver="pndm", spacing=spacing, **options)

    def keep(self, timesteps: Sequence[int], device: str | torch.device | None = None) -> None:
        """Choose the chain like `RespacedScheduler`; ``timesteps`` then lists the second one twice."""
        super().keep(timesteps, device)
        self._visited = [*self._kept[:-3:-1], *self._kept[-2::-1]]
        self.timesteps = torch.tensor(self._visited, dtype=torch.int64, device=device)

    def timesteps_from(self, strength: float) -> list[int]:
        """List the timesteps like `RespacedScheduler`: one more than the strength's number of steps."""
        return self._visited[len(self._kept) - self._depth(strength) :]

    def start_timestep(self, strength: float, variant: StartVariant = "exact") -> int:
        """Return the timestep to which an image is noised, see `RespacedScheduler`."""
        check_choice("variant", variant, StartVariant)
        start = self.position(self.timesteps_from(strength)[0]) + (variant == "published_code")
        return self._kept[min(start, len(self._kept) - 1)]

    def for_chain(self, timesteps: Sequence[int]) -> Self:
        """Return a copy without history for a chain along these timesteps."""
        fresh = super().for_chain(timesteps)
        if timesteps:
            fresh._run = fresh._along(timesteps)
        return fresh

    def _started(self, timestep: int) -> _Run:
        return self._along(self._visited[self._visited.index(timestep) :])

    def _along(self, timesteps: Sequence[int]) -> _Run:
        """Return a chain along these timesteps, with the updates of diffusers' scheduler on unit vectors."""
        positions = [self.position(t) for t in timesteps]
        levels = tuple(self.alpha_bar(t) for t in self._kept)
        key = (*levels, self._final_alpha_bar, *map(float, positions))
        if key not in self._updates:
            solver = self._create_solver(len(levels))
            solver.alphas_cumprod = torch.tensor(levels, dtype=torch.float64)
            solver.final_alpha_cumprod = torch.tensor(self._final_alpha_bar, dtype=torch.float64)
            self._updates[key] = _measured(solver, positions)
        return _Run(list(timesteps), self._updates[key])


def _measured(solver: Any, positions: Sequence[int]) -> list[_Update]:
    """Run the solver on unit vectors: entry 0 counts the start, entry i + 1 prediction i."""
    unit = torch.eye(len(positions) + 1, dtype=torch.float64).unsqueeze(1)
    sample, updates = unit[0], []
    for i, position in enumerate(positions):
        result = solver.step(unit[i + 1], position, sample).prev_sample
        scale = float(result[0, 0] / sample[0, 0])
        weights = (result - scale * sample)[0, 1 : i + 2].flip(0)
        updates.append(_Update(scale, weights[: _used(weights)].tolist()))
        sample = result
    return updates


SCHEDULERS.add("plms", "PNDM as Stable Diffusion's pipelines run it, by diffusers", PLMSScheduler)
