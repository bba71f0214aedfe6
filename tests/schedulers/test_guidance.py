# SPDX-License-Identifier: Apache-2.0
"""A gradient moves a stochastic step by Σ and changes ε of a deterministic one."""

from __future__ import annotations

import math

import pytest
import torch

from medcf.schedulers import DDIMInverseScheduler, Prediction, RespacedDDIMScheduler, RespacedDDPMScheduler


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 1, 6, dtype=torch.float64, generator=generator) for _ in range(3)]


def shifted(prediction: Prediction, gradient: torch.Tensor, alpha_bar: float, sample: torch.Tensor) -> Prediction:
    """ε ← ε + √(1 - A) g, done for real: the clean image follows."""
    noise = prediction.noise + math.sqrt(1 - alpha_bar) * gradient
    original = (sample - math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha_bar)
    return Prediction(noise, original, prediction.velocity)


@pytest.mark.parametrize("index", [0, 1, 5, 19])
@pytest.mark.parametrize("scheduler_type", [RespacedDDIMScheduler, DDIMInverseScheduler])
def test_deterministic_guidance_equals_changing_the_noise_before_the_step(scheduler_type, index, parts):
    sample, output, gradient = parts
    scheduler = scheduler_type(clip_sample=False)
    scheduler.set_timesteps(20)
    t = scheduler.kept[index]
    prediction = scheduler.convert(output, t, sample)
    changed = scheduler.posterior(shifted(prediction, gradient, scheduler.alpha_bar(t), sample), t, sample)
    guided = scheduler.posterior(prediction, t, sample).guide(gradient)
    assert torch.allclose(guided.mean, changed.mean, rtol=1e-9, atol=1e-9)
    assert guided.variance == 0.0


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_guidance_shifts_the_mean_by_the_variance(variance_type, parts):
    sample, output, gradient = parts
    scheduler = RespacedDDPMScheduler(variance_type=variance_type)
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps.tolist():
        step = scheduler.posterior(scheduler.convert(output, t, sample), t, sample)
        guided = step.guide(gradient)
        assert torch.allclose(guided.mean, step.mean - scheduler.variance(t) * gradient)
        assert guided.variance == step.variance
        assert guided.pred_original is step.pred_original


def test_ddpm_stays_stochastic_at_the_end_of_the_chain(parts):
    """With fixed_small the variance is 0 there, and so is the guidance: it does not become a deterministic step."""
    sample, output, gradient = parts
    scheduler = RespacedDDPMScheduler(variance_type="fixed_small")
    step = scheduler.posterior(scheduler.convert(output, 0, sample), 0, sample)
    assert torch.equal(step.guide(gradient).mean, step.mean)


def test_ddim_with_eta_is_guided_by_its_variance(parts):
    sample, output, gradient = parts
    scheduler = RespacedDDIMScheduler(eta=0.5, clip_sample=False)
    scheduler.set_timesteps(20)
    t = scheduler.kept[7]
    step = scheduler.posterior(scheduler.convert(output, t, sample), t, sample)
    assert step.gain == step.variance > 0
    assert torch.allclose(step.guide(gradient).mean, step.mean - step.variance * gradient)


def test_ddim_moves_about_half_as_far_as_ddpm_per_step():
    ddpm, ddim = RespacedDDPMScheduler(variance_type="fixed_large"), RespacedDDIMScheduler()
    sample = torch.zeros(1, 1, 1)
    for scheduler in (ddpm, ddim):
        scheduler.set_timesteps(400)
    for t in ddpm.timesteps_from(0.3)[:100]:
        gains = [s.posterior(s.convert(sample, t, sample), t, sample).gain for s in (ddim, ddpm)]
        assert gains[0] / gains[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        RespacedDDIMScheduler(eta=eta)
    scheduler, sample = RespacedDDIMScheduler(), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="eta"):
        scheduler.step(sample, 5, sample, eta=eta)
