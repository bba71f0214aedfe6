# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: from a clean image up to its noise, along the list of kept timesteps used on the way back."""

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


class DDIMInverseScheduler(RespacedScheduler, DDIMScheduler):  # type: ignore[misc]  # MONAI's step also takes eta
    """Walks up the kept timesteps; the mirror image of ``RespacedDDIMScheduler`` with η = 0.

    ``timesteps`` ascends. A step at a timestep takes the sample from the previous kept level (the clean image before
    the first) TO that timestep, and the network is given the timestep of the destination (Song et al. 2021, arXiv
    2010.02502, eq. 14; Mokady et al. 2022, arXiv 2211.09794, sec. 3.2)::

        x̂0 = (x - √(1 - P) ε) / √P,    result = √A x̂0 + √(1 - A) ε

    So any depth N is ``timesteps[:N]``, and ``RespacedDDIMScheduler`` walks the same list back. This is the explicit
    form of the forward step's exact inverse, which would evaluate ε at the result: the round trip has an error of
    O(1/n). Repeating a step removes that error, because :meth:`posterior` uses only ε (Pan et al. 2023, arXiv
    2309.04907)::

        candidate = sample
        for _ in range(iterations):
            prediction = scheduler.convert(network(candidate, t), t, candidate)
            candidate = scheduler.posterior(prediction, t, sample).mean

    Args:
        args: see `RespacedScheduler`.
        options: see there. ``clip_sample`` defaults to False, unlike elsewhere, because a clipped inversion cannot be
            undone. ``set_alpha_to_one`` must be the same on the way back.

    Raises:
        ValueError: if a name is unknown.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options if len(args) > 2 else {"clip_sample": False} | options))

    def keep(self, timesteps: Sequence[int], device: str | torch.device | None = None) -> None:
        """Choose the chain like `RespacedScheduler`; ``timesteps`` ascends, also after ``set_timesteps``."""
        super().keep(timesteps, device)
        self.timesteps = self.timesteps.flip(0)

    def timesteps_from(self, strength: float) -> list[int]:
        """List the timesteps like `RespacedScheduler`, but ascending; the last one is the level of the result."""
        return super().timesteps_from(strength)[::-1]

    def posterior(self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor) -> Step:
        """Return the sample at a kept timestep, given the one at the previous kept level.

        Args:
            prediction: the network's prediction given ``timestep``; only its ε is used, or, if the destination holds no
                signal (A = 0) so that the network cannot tell ε, only its clean image.
            timestep: the kept timestep of the destination.
            sample: the sample at the previous kept level, (B, C, *spatial).

        Returns:
            A step with variance 0. Its gain is the effect of ε ← ε + √(1 - A) g on the result. It is negative, because
            a gradient that is descended on the way down is ascended on the way up.

        Raises:
            ValueError: if the timestep is not kept.
        """
        t = int(timestep)
        target, current = self.alpha_bar(t), self.alpha_bar_prev(t)
        noise = prediction.noise
        effect = math.sqrt(1 - target) - math.sqrt(target / current) * math.sqrt(1 - current)
        if target == 0 and current < 1:
            original, effect = self._clipped(prediction.original), 0.0
            noise = (sample.to(noise.dtype) - math.sqrt(current) * original) / math.sqrt(1 - current)
        else:
            original = self._clipped((sample.to(noise.dtype) - math.sqrt(1 - current) * noise) / math.sqrt(current))
        return Step(
            mean=math.sqrt(target) * original + math.sqrt(1 - target) * noise,
            variance=0.0,
            gain=-effect * math.sqrt(1 - target),
            pred_original=original,
            sample=sample,
            timestep=t,
        )


SCHEDULERS.add("ddim_inverse", "DDIM inversion along a list of kept timesteps", DDIMInverseScheduler)
