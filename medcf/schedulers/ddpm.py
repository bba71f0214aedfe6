# SPDX-License-Identifier: Apache-2.0
"""Ancestral sampling (DDPM) along any list of kept timesteps."""

from __future__ import annotations

import math

import torch
from monai.networks.schedulers import DDPMScheduler
from monai.networks.schedulers.ddpm import DDPMVarianceType

from medcf.registry import SCHEDULERS
from medcf.schedulers.base import RespacedScheduler
from medcf.schedulers.prediction import Prediction
from medcf.schedulers.step import Step

__all__ = ["RespacedDDPMScheduler"]


class RespacedDDPMScheduler(RespacedScheduler, DDPMScheduler):
    """MONAI's ``DDPMScheduler``, with a posterior between kept timesteps.

    With A and P the cumulative alphas of a kept timestep and of the previous kept one, and β̃ = 1 - A / P (Ho et al.
    2020, arXiv 2006.11239, eq. 7, for the shortened chain; Nichol & Dhariwal 2021, arXiv 2102.09672, sec. 4)::

        mean = √P β̃ / (1 - A) x̂0 + √(A / P) (1 - P) / (1 - A) x_t
        σ²   = β̃ (1 - P) / (1 - A)

    ``variance_type``: ``fixed_small`` uses σ²; ``fixed_large`` uses β̃; ``learned`` uses the second half of the
    network's channels, v, as the variance (MONAI's convention); ``learned_range`` uses exp(f log β̃ + (1 - f) log σ²)
    with f = (v + 1) / 2. Nothing is drawn at the end of the chain; the variance there only scales guidance: 0 with
    ``fixed_small``, the posterior variance of the previous step with ``fixed_large`` (as in guided-diffusion), which
    also replaces log 0 in ``learned_range``.

    Arguments and errors as in `RespacedScheduler`, plus ``variance_type``.

    Example:
        >>> scheduler = RespacedDDPMScheduler(num_train_timesteps=1000)
        >>> scheduler.set_timesteps(400)
        >>> scheduler.timesteps[:3].tolist(), scheduler.previous(999)
        ([999, 996, 994], 996)
        >>> scheduler.timesteps_from(0.3)[0]
        298
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.kept)} of {self.num_train_timesteps} steps)"

    def _get_name(self) -> str:
        """Return the name that MONAI's inferers require for computing likelihoods."""
        return DDPMScheduler.__name__

    def _get_mean(self, timestep: int, x_0: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        """Return MONAI's posterior mean, for the likelihood.

        Raises:
            ValueError: if the chain is shortened, because MONAI would sum the likelihood over kept steps only.
        """
        if len(self.kept) < self.num_train_timesteps:
            raise ValueError(
                f"MONAI's likelihood needs every step, but {len(self.kept)} of {self.num_train_timesteps} are kept: "
                f"call set_timesteps({self.num_train_timesteps})."
            )
        mean: torch.Tensor = super()._get_mean(timestep, x_0, x_t)
        return mean

    def _beta(self, timestep: int) -> float:
        """Return β̃, the variance added from the previous kept step to this one."""
        return 1 - self.alpha_bar(timestep) / self.alpha_bar_prev(timestep)

    def _posterior_variance(self, timestep: int) -> float:
        """Return σ², the variance of the posterior given the clean image; 0 at the end of the chain."""
        spread = (1 - self.alpha_bar_prev(timestep)) / (1 - self.alpha_bar(timestep))
        return self._beta(timestep) * spread

    def _floor_variance(self, timestep: int) -> float:
        """Return σ², with entry 0, which vanishes, replaced by entry 1 (by β̃ in a chain with one step)."""
        if self.position(timestep) > 0:
            return self._posterior_variance(timestep)
        return self._posterior_variance(self._kept[1]) if len(self._kept) > 1 else self._beta(timestep)

    def variance_range(self, timestep: int | torch.Tensor) -> tuple[float, float]:
        """Return the bounds between which ``learned_range`` interpolates, σ² (its entry 0 replaced, see above) and β̃.

        Raises:
            ValueError: if the timestep is not kept.
        """
        return self._floor_variance(int(timestep)), self._beta(int(timestep))

    def variance(self, timestep: int | torch.Tensor, prediction: Prediction | None = None) -> float | torch.Tensor:
        """Return Σ, the model's variance for a step; it scales guidance, even where nothing is drawn.

        Args:
            timestep: a kept timestep.
            prediction: the network's prediction; required if the variance is learned.

        Returns:
            A float, or a tensor (B, C, *spatial) if the variance is learned.

        Raises:
            ValueError: if the variance is learned and the network did not predict it.
        """
        t = int(timestep)
        if self.variance_type == DDPMVarianceType.FIXED_SMALL:
            return self._posterior_variance(t)
        if self.variance_type == DDPMVarianceType.FIXED_LARGE:
            return self._beta(t) if self.position(t) > 0 else self._floor_variance(t)
        if prediction is None or prediction.variance is None:
            raise ValueError(
                f"`variance_type` is {str(self.variance_type)!r}, but the network predicted no variance: it needs "
                "twice as many output channels as the sample has; or choose fixed_small or fixed_large."
            )
        if self.variance_type == DDPMVarianceType.LEARNED:
            return prediction.variance
        fraction = (prediction.variance + 1) / 2
        low, high = (math.log(bound) for bound in self.variance_range(t))
        return torch.exp(fraction * high + (1 - fraction) * low)

    def posterior(self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor) -> Step:
        """Return the distribution of the sample at the previous kept timestep, see `RespacedScheduler`; its gain is Σ.

        Raises:
            ValueError: if the timestep is not kept, or a learned variance is missing.
        """
        t = int(timestep)
        alpha_bar, alpha_bar_prev, beta = self.alpha_bar(t), self.alpha_bar_prev(t), self._beta(t)
        original = self._clipped(prediction.original)
        c0 = math.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar)
        c1 = math.sqrt(alpha_bar / alpha_bar_prev) * (1 - alpha_bar_prev) / (1 - alpha_bar)
        gain = self.variance(t, prediction)
        return Step(
            mean=c0 * original + c1 * sample.to(original.dtype),
            variance=gain if self.position(t) > 0 else 0.0,
            gain=gain,
            pred_original=original,
            sample=sample,
            timestep=t,
        )


SCHEDULERS.add("ddpm", "Ancestral sampling along a list of kept timesteps", RespacedDDPMScheduler)
