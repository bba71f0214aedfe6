# SPDX-License-Identifier: Apache-2.0
"""Implicit sampling (DDIM) along any list of kept timesteps."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler

from medcf.registry import SCHEDULERS
from medcf.schedulers.base import RespacedScheduler
from medcf.schedulers.prediction import Prediction
from medcf.schedulers.step import Step

__all__ = ["RespacedDDIMScheduler"]


class RespacedDDIMScheduler(RespacedScheduler, DDIMScheduler):
    """MONAI's ``DDIMScheduler``, stepping between kept timesteps.

    With A and P the cumulative alphas of a kept timestep and of the previous kept one (Song et al. 2021, arXiv
    2010.02502, eqs 12 and 16)::

        mean = √P x̂0 + √(1 - P - σ²) ε,    σ² = η² (1 - A / P) (1 - P) / (1 - A)

    With η = 0 the solver is deterministic and guidance changes ε; with η > 0 it is stochastic and guidance shifts the
    mean by σ². The two shifts differ in size, so guidance scales do not transfer between them, nor from DDPM.

    Args:
        args: see `RespacedScheduler`.
        eta: η in [0, 1]: 0 for DDIM, 1 for a chain with DDPM's variance; ``step`` can override it.
        use_clipped_model_output: whether to recompute ε from the clipped clean image, like guided-diffusion. MONAI and
            diffusers keep the network's ε, which is the default here.
        options: see `RespacedScheduler`.

    Raises:
        ValueError: if a name is unknown or η is outside [0, 1].
    """

    def __init__(self, *args: Any, eta: float = 0.0, use_clipped_model_output: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.eta = self._check_eta(eta)
        self.use_clipped_model_output = use_clipped_model_output

    @staticmethod
    def _check_eta(eta: float) -> float:
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` is {eta}; it must be in [0, 1].")
        return eta

    def _read(self, prediction: Prediction, timestep: int, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clean image and ε used in a step, clipped as configured."""
        original, noise = self._clipped(prediction.original), prediction.noise
        if self.clip_sample and self.use_clipped_model_output:
            alpha_bar = self.alpha_bar(timestep)
            noise = (sample.to(original.dtype) - math.sqrt(alpha_bar) * original) / math.sqrt(1 - alpha_bar)
        return original, noise

    def posterior(
        self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor, eta: float | None = None
    ) -> Step:
        """Return the distribution of the sample at the previous kept timestep, see `RespacedScheduler`.

        Arguments and errors as there, plus ``eta``: η of this step in [0, 1], or None for the scheduler's own.

        Returns:
            The step. Its gain is c0 (1 - A) / √A with c0 = √P - √A √(1 - P) / √(1 - A) if η is 0, which equals ε ← ε +
            √(1 - A) g before an unclipped step, and σ² otherwise. It is 0 for η = 0 at A = 0, where the sample holds no
            signal and ε does not move the clean image.
        """
        t, eta = int(timestep), self.eta if eta is None else self._check_eta(eta)
        alpha_bar, alpha_bar_prev = self.alpha_bar(t), self.alpha_bar_prev(t)
        original, noise = self._read(prediction, t, sample)
        variance = eta**2 * (1 - alpha_bar / alpha_bar_prev) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        gain = variance
        if eta == 0:
            gain = 0.0
            if alpha_bar > 0:
                gain = math.sqrt(alpha_bar_prev / alpha_bar) * (1 - alpha_bar)
                gain -= math.sqrt((1 - alpha_bar_prev) * (1 - alpha_bar))
        direction = math.sqrt(max(1 - alpha_bar_prev - variance, 0.0))
        return Step(
            mean=math.sqrt(alpha_bar_prev) * original + direction * noise,
            variance=variance,
            gain=gain,
            pred_original=original,
            sample=sample,
            timestep=t,
        )

    def step(  # type: ignore[override]  # eta has the same position as in MONAI
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the sample at the previous kept timestep, see `RespacedScheduler`; learned variance is ignored.

        ``eta`` is η of this step in [0, 1], or None for the scheduler's own.
        """
        step = self.posterior(self.convert(model_output, timestep, sample), timestep, sample, eta)
        return step.draw(generator), step.pred_original.to(sample.dtype)

    def reversed_step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Step to the next noisier kept timestep with ε evaluated at the sample, like MONAI's ``reversed_step``.

        For inversion use :class:`~medcf.schedulers.ddim_inverse.DDIMInverseScheduler`, which starts from the clean
        image.

        Raises:
            ValueError: if the timestep is the noisiest kept one.
        """
        index = self.position(timestep) + 1
        if index == len(self._kept):
            raise ValueError(f"Timestep {int(timestep)} is the noisiest one kept; it has no successor.")
        target = self.alpha_bar(self._kept[index])
        original, noise = self._read(self.convert(model_output, timestep, sample), int(timestep), sample)
        result = math.sqrt(target) * original + math.sqrt(1 - target) * noise
        return result.to(sample.dtype), original.to(sample.dtype)


SCHEDULERS.add("ddim", "Implicit sampling along a list of kept timesteps", RespacedDDIMScheduler)
