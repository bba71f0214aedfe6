# SPDX-License-Identifier: Apache-2.0
"""Gaussian data, whose perfect denoiser is known in closed form, and the moments of a chain run with it.

``MEDCF_TEST_SCHEDULERS=monai python -m pytest tests/schedulers`` points the tests that use ``make_scheduler`` at
MONAI's own schedulers instead of ours. Only ``set_timesteps``, ``timesteps`` and ``step`` are used, which both have.
The tests of chains shorter than the training's then fail, and those with all 1000 steps pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, Scheduler

from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

NUM_TRAIN_TIMESTEPS = 1000
USE_MONAI = os.environ.get("MEDCF_TEST_SCHEDULERS", "medcf") == "monai"


def _linear_alpha_bar() -> np.ndarray:
    return np.cumprod(1 - np.linspace(1e-4, 2e-2, NUM_TRAIN_TIMESTEPS))


@dataclass(frozen=True)
class Gaussian:
    """Data N(m, s²) under a schedule (MONAI's default); A is computed here, not taken from a scheduler."""

    mean: float = 0.3
    std: float = 0.2
    alpha_bar: np.ndarray = field(default_factory=_linear_alpha_bar)

    def denoise(self, x: torch.Tensor, alpha_bar: float) -> torch.Tensor:
        """E[x0 | x_t] = m + K (x - √A m)."""
        gain = alpha_bar**0.5 * self.std**2 / (alpha_bar * self.std**2 + 1 - alpha_bar)
        return self.mean + gain * (x - alpha_bar**0.5 * self.mean)

    def output(self, x: torch.Tensor, t: int, prediction_type: str = "epsilon") -> torch.Tensor:
        """What a perfect network of the given kind returns."""
        alpha_bar = float(self.alpha_bar[t])
        original = self.denoise(x, alpha_bar)
        noise = (x - alpha_bar**0.5 * original) / (1 - alpha_bar) ** 0.5
        velocity = alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * original
        return {"epsilon": noise, "sample": original, "v_prediction": velocity}[prediction_type]

    def network(self, x: torch.Tensor, timesteps: torch.Tensor, context: object = None) -> torch.Tensor:
        """The perfect noise predictor, called as MONAI's inferers call a network."""
        return self.output(x, int(timesteps[0]))


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def tolerance() -> float:
    """MONAI's float32 tables get 1e-4, so that it is its steps that fail the tests and not its rounding."""
    return 1e-4 if USE_MONAI else 1e-6


@pytest.fixture
def make_scheduler() -> Callable[..., Scheduler]:
    """Build the scheduler under test by kind, ours or (see above) MONAI's, without clipping."""

    def make(kind: str, spacing: str = "respaced", **kwargs: object) -> Scheduler:
        kwargs = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS, "clip_sample": False} | kwargs
        if USE_MONAI:
            return {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[kind](**kwargs)
        return {"ddpm": RespacedDDPMScheduler, "ddim": RespacedDDIMScheduler}[kind](spacing=spacing, **kwargs)

    return make


@pytest.fixture
def chain_moments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, float]]:
    """Return the mean and variance a chain gives a starting N(0, 1), without drawing anything.

    With the perfect denoiser every step is x → a x + b + sigma z. Three pixels (x, z) = (0, 0), (1, 0), (0, 1) in one
    call of ``step`` reveal a, b and sigma.
    """
    noise = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 1, 3)
    probe = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).reshape(1, 1, 3)
    monkeypatch.setattr(torch, "randn", lambda *size, **options: noise)

    def moments(
        scheduler: Scheduler, gaussian: Gaussian, prediction_type: str = "epsilon", **options: float
    ) -> tuple[float, float]:
        mean, variance = 0.0, 1.0
        for t in scheduler.timesteps.tolist():
            result, _ = scheduler.step(gaussian.output(probe, t, prediction_type), t, probe, **options)
            base, moved, noised = result.flatten().tolist()
            slope, sigma = moved - base, noised - base
            mean, variance = slope * mean + base, slope**2 * variance + sigma**2
        return mean, variance

    return moments
