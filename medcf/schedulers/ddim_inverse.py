# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: from a clean image up to its noise, along the kept list that the way back will use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler

from medcf.registry import SCHEDULERS
from medcf.schedulers.base import RespacedScheduler
from medcf.schedulers.prediction import Prediction
from medcf.schedulers.step import Step

__all__ = ["DDIMInverseScheduler"]


class DDIMInverseScheduler(RespacedScheduler, DDIMScheduler):  # type: ignore[misc]  # MONAI's step takes eta, too
    """Walks the kept timesteps upwards; the mirror of ``RespacedDDIMScheduler`` with η = 0.

    ``timesteps`` ascends. The step at a timestep takes the sample from the previous kept level (the clean image before
    the first) TO that timestep, with the network told the timestep it goes to (Song et al. 2021, arXiv 2010.02502, eq.
    14; Mokady et al. 2022, arXiv 2211.09794, sec. 3.2)::

        x̂0 = (x - √(1 - P) ε) / √P,    result = √A x̂0 + √(1 - A) ε

    So any depth N is ``timesteps[:N]``, and ``RespacedDDIMScheduler`` walks the same list back. It is the explicit
    form of the forward step's exact inverse, in which ε would be taken at the result: the round trip errs by O(1/n).
    Repeating a step removes that error, since :meth:`posterior` only uses ε (Pan et al. 2023, arXiv 2309.04907)::

        candidate = sample
        for _ in range(iterations):
            prediction = scheduler.convert(network(candidate, t), t, candidate)
            candidate = scheduler.posterior(prediction, t, sample).mean

    Args:
        args: see `RespacedScheduler`.
        options: see there. ``clip_sample`` is False unless it is given, unlike elsewhere: a clipped inversion cannot be
            undone. ``set_alpha_to_one`` must be the same on the way back.

    Raises:
        ValueError: if a name is unknown.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options if len(args) > 2 else {"clip_sample": False} | options))

    def keep(self, timesteps: Sequence[int], device: str | torch.device | None = None) -> None:
        """Choose the chain as `RespacedScheduler` does; ``timesteps`` ascends, after ``set_timesteps``, too."""
        super().keep(timesteps, device)
        self.timesteps = self.timesteps.flip(0)

    def timesteps_from(self, strength: float) -> list[int]:
        """List the timesteps as `RespacedScheduler` does, but ascending; the last is the level the result is at."""
        return super().timesteps_from(strength)[::-1]

    def posterior(self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor) -> Step:
        """Return the sample at a kept timestep from the one at the previous kept level.

        Args:
            prediction: what the network says when told ``timestep``; only its ε is used.
            timestep: the kept timestep to go to.
            sample: the sample at the previous kept level, (B, C, *spatial).

        Returns:
            A step of variance 0. Its gain is the effect of ε ← ε + √(1 - A) g on the result; it is negative, for a
            gradient that is descended on the way down is climbed on the way up.

        Raises:
            ValueError: if the timestep is not kept.
        """
        t = int(timestep)
        target, current = self.alpha_bar(t), self.alpha_bar_prev(t)
        noise = prediction.noise
        original = self._clipped((sample.to(noise.dtype) - math.sqrt(1 - current) * noise) / math.sqrt(current))
        effect = math.sqrt(1 - target) - math.sqrt(target / current) * math.sqrt(1 - current)
        return Step(
            mean=math.sqrt(target) * original + math.sqrt(1 - target) * noise,
            variance=0.0,
            gain=-effect * math.sqrt(1 - target),
            pred_original=original,
            sample=sample,
            timestep=t,
        )


SCHEDULERS.add("ddim_inverse", "DDIM inversion along a kept list of timesteps", DDIMInverseScheduler)
