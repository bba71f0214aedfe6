# SPDX-License-Identifier: Apache-2.0
"""Schedules that end in pure noise: rescaled as published, sampled without dividing by zero, refused for ε."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.networks.schedulers import NoiseSchedules

from medcf.schedulers import (
    DDIMInverseScheduler,
    RespacedDDIMScheduler,
    RespacedDDPMScheduler,
    create_scheduler,
)

KINDS = {"ddpm": RespacedDDPMScheduler, "ddim": RespacedDDIMScheduler}
TYPES = ["v_prediction", "sample"]
ZERO = {"clip_sample": False, "rescale_zero_terminal_snr": True, "prediction_type": "v_prediction"}


def rescaled(alpha_bar: np.ndarray) -> np.ndarray:
    """√A, moved and stretched onto [0, its start]."""
    signal = np.sqrt(alpha_bar)
    return np.interp(signal, [signal[-1], signal[0]], [0.0, signal[0]]) ** 2


@pytest.fixture
def pure(gaussian):
    return type(gaussian)(alpha_bar=rescaled(gaussian.alpha_bar))


def test_the_schedule_ends_without_signal_and_starts_where_it_did(pure):
    scheduler = RespacedDDPMScheduler(**ZERO)
    found = [scheduler.alpha_bar(t) for t in range(1000)]
    np.testing.assert_allclose(found, pure.alpha_bar, rtol=1e-5, atol=1e-9)
    assert found[-1] == 0.0
    assert found[0] == pytest.approx(RespacedDDPMScheduler().alpha_bar(0))
    tables = (scheduler.alphas_cumprod, torch.cumprod(1 - scheduler.betas.double(), 0).float())
    for table in tables:  # MONAI's own, which its inferers read
        torch.testing.assert_close(table, torch.tensor(found).float(), rtol=1e-3, atol=1e-6)


def test_the_schedule_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, rescale_betas_zero_snr=True)
    ours = RespacedDDIMScheduler(**ZERO)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("count", [1, 2, 10, 50, 1000])
def test_moments_follow_the_recursion(pure, chain_moments, kind, eta, prediction_type, count):
    scheduler = KINDS[kind](**ZERO | {"prediction_type": prediction_type, "spacing": "trailing"})
    scheduler.set_timesteps(count)
    options = {"eta": eta} if kind == "ddim" else {}
    found = chain_moments(scheduler, pure, prediction_type, **options)

    mean, variance, m, s = 0.0, 1.0, pure.mean, pure.std
    levels = [*pure.alpha_bar[list(scheduler.kept)][::-1], 1.0]
    for a, p in pairwise(levels):
        sigma2 = (1 - a / p) * (1 - p) / (1 - a) * (1.0 if kind == "ddpm" else eta**2)
        c1 = math.sqrt(max(1 - p - sigma2, 0) / (1 - a))  # of DDPM too, which is DDIM with η = 1
        c0 = math.sqrt(p) - c1 * math.sqrt(a)
        k = math.sqrt(a) * s**2 / (a * s**2 + 1 - a)
        mean, variance = c0 * (m + k * (mean - math.sqrt(a) * m)) + c1 * mean, (c0 * k + c1) ** 2 * variance + sigma2
    assert found[0] == pytest.approx(mean, abs=1e-6)
    assert math.sqrt(found[1]) == pytest.approx(math.sqrt(variance), abs=1e-6)


def test_a_chain_from_noise_has_the_mean_of_the_data_which_it_misses_otherwise(gaussian, chain_moments):
    """The flaw that the rescaling repairs: brightness leaks through the last timestep in training only."""
    errors = {}
    for zero in (True, False):
        table = np.cumprod(1 - np.linspace(1e-4, 2e-2, 100))
        data = type(gaussian)(mean=0.9, std=0.5, alpha_bar=rescaled(table) if zero else table)
        scheduler = RespacedDDIMScheduler(100, **ZERO | {"rescale_zero_terminal_snr": zero})
        errors[zero] = abs(chain_moments(scheduler, data, "v_prediction")[0] - data.mean)
    assert errors[True] < 0.01 < 0.2 < errors[False]


@pytest.mark.parametrize("name", ["unipc", "dpmpp", "euler"])
def test_the_solvers_of_diffusers_start_from_pure_noise(pure, name):
    pytest.importorskip("diffusers")
    scheduler = create_scheduler(name, spacing="trailing", **ZERO)
    scheduler.set_timesteps(100)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 9)
    sample = start
    for t in scheduler.timesteps.tolist():
        sample, _ = scheduler.step(pure.output(sample, t, "v_prediction"), t, sample)
    tolerance = 0.05 if name == "euler" else 0.006
    torch.testing.assert_close(sample, pure.mean + pure.std * start, rtol=0, atol=tolerance)


def test_pndm_which_integrates_the_noise_refuses_to_start_without_signal():
    pytest.importorskip("diffusers")
    scheduler, sample = create_scheduler("pndm", **ZERO), torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="where the noisiest timestep holds no signal, choose unipc"):
        scheduler.step(sample, 999, sample)
    scheduler.step(sample, 998, sample)


@pytest.mark.parametrize("kind", [*KINDS.values(), DDIMInverseScheduler])
def test_epsilon_is_refused_with_the_remedy(kind):
    with pytest.raises(ValueError, match=r'zero terminal SNR.*`prediction_type` "v_prediction" or "sample"'):
        kind(rescale_zero_terminal_snr=True)
    scheduler = kind(**ZERO)
    scheduler.prediction_type = "epsilon"  # as copies of a schedule do
    sample = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match=r"holds no signal.*v_prediction or sample"):
        scheduler.convert(sample, 999, sample)


def test_a_foreign_schedule_that_ends_without_signal_is_treated_alike():
    name = "ends_without_signal"
    if name not in NoiseSchedules:
        NoiseSchedules.add(
            name, "for this test", lambda num_train_timesteps: torch.linspace(0.01, 1, num_train_timesteps)
        )
    with pytest.raises(ValueError, match="zero terminal SNR"):
        RespacedDDIMScheduler(50, name)
    scheduler = RespacedDDIMScheduler(50, name, prediction_type="sample", clip_sample=False)
    original, noise = torch.full((1, 1, 3), 0.4), torch.randn(1, 1, 3)
    result, clean = scheduler.step(original, 49, noise)
    assert torch.equal(clean, original)
    p = scheduler.alpha_bar(48)
    torch.testing.assert_close(result, math.sqrt(p) * original + math.sqrt(1 - p) * noise)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize(("iterations", "tolerance"), [(1, 0.1), (30, 1e-3)])
def test_an_image_survives_inversion_to_pure_noise_and_back(pure, prediction_type, iterations, tolerance):
    inverse, forward = (
        kind(**ZERO | {"prediction_type": prediction_type}) for kind in (DDIMInverseScheduler, KINDS["ddim"])
    )
    for scheduler in (inverse, forward):
        scheduler.set_timesteps(50)
    image = torch.linspace(-0.1, 0.7, 8, dtype=torch.float64).reshape(1, 1, 8)
    sample = image
    for t in inverse.timesteps.tolist():
        candidate = sample
        for _ in range(iterations):
            prediction = inverse.convert(pure.output(candidate, t, prediction_type), t, candidate)
            candidate = inverse.posterior(prediction, t, sample).mean
        sample = candidate
    assert float(sample.std()) > 0.8
    for t in forward.timesteps.tolist():
        sample, _ = forward.step(pure.output(sample, t, prediction_type), t, sample)
    assert float((sample - image).abs().max()) < tolerance


def test_guidance_without_signal_leaves_deterministic_steps_and_moves_stochastic_ones():
    sample, gradient = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    for kind, options in ((KINDS["ddim"], {}), (KINDS["ddpm"], {"variance_type": "fixed_large"})):
        scheduler = kind(**ZERO, **options)
        scheduler.set_timesteps(10)
        step = scheduler.posterior(scheduler.convert(sample, 999, sample), 999, sample)
        moved = float((step.guide(gradient).mean - step.mean).abs().max())
        assert moved == (0.0 if kind is KINDS["ddim"] else 1.0)  # Σ = β̃ = 1 - 0
