# SPDX-License-Identifier: Apache-2.0
"""Inversion walks the list that the way back uses, and the round trip errs by O(1/n)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler

START = torch.linspace(-0.4, 1.0, 8, dtype=torch.float64).reshape(1, 1, 8)  # m ± 3.5 s


def invert(gaussian, count, strength=1.0, spacing="respaced", prediction_type="epsilon", iterations=1, **kwargs):
    """Walk up; with several iterations ε is taken where the step arrives."""
    inverse = DDIMInverseScheduler(spacing=spacing, prediction_type=prediction_type, **kwargs)
    inverse.set_timesteps(count)
    sample = START
    for t in inverse.timesteps_from(strength):
        candidate = sample
        for _ in range(iterations):
            prediction = inverse.convert(gaussian.output(candidate, t, prediction_type), t, candidate)
            candidate = inverse.posterior(prediction, t, sample).mean
        sample = candidate
    return sample


def round_trip_error(gaussian, count, strength=1.0, spacing="respaced", prediction_type="epsilon", **kwargs) -> float:
    sample = invert(gaussian, count, strength, spacing, prediction_type, **kwargs)
    forward = RespacedDDIMScheduler(clip_sample=False, spacing=spacing, prediction_type=prediction_type)
    forward.set_timesteps(count)
    for t in forward.timesteps_from(strength):
        sample, _ = forward.step(gaussian.output(sample, t, prediction_type), t, sample)
    return float((sample - START).abs().max())


@pytest.mark.parametrize("spacing", ["respaced", "leading", "trailing", "linspace"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_round_trip_error_halves_when_the_steps_double(gaussian, spacing, strength):
    errors = [round_trip_error(gaussian, count, strength, spacing) for count in (125, 250, 500)]
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4
    assert errors[-1] < 0.03


def test_round_trip_is_the_same_for_every_parameterization(gaussian):
    errors = [round_trip_error(gaussian, 50, prediction_type=name) for name in ("epsilon", "sample", "v_prediction")]
    assert max(errors) - min(errors) < 1e-5


def test_repeating_a_step_removes_the_round_trip_error(gaussian):
    errors = [round_trip_error(gaussian, 50, iterations=k) for k in (1, 5, 30)]
    assert errors[1] < errors[0] / 3
    assert errors[2] < 1e-3


def test_inversion_maps_gaussian_data_to_gaussian_noise(gaussian):
    """The exact flow is affine and takes N(m, s²) to N(√A m, A s² + 1 - A)."""
    result = invert(gaussian, 1000)
    a = gaussian.alpha_bar[999]
    expected = a**0.5 * gaussian.mean + (a * gaussian.std**2 + 1 - a) ** 0.5 * (START - gaussian.mean) / gaussian.std
    assert torch.allclose(result, expected, atol=0.03)


def test_inversion_walks_up_from_the_clean_image():
    inverse = DDIMInverseScheduler(num_train_timesteps=1000)
    inverse.set_timesteps(400)
    forward = RespacedDDIMScheduler(num_train_timesteps=1000)
    forward.set_timesteps(400)
    assert inverse.timesteps.tolist() == forward.timesteps.tolist()[::-1]
    assert inverse.timesteps_from(0.3) == forward.timesteps_from(0.3)[::-1]
    # From the clean image the first step is plain noising with the predicted ε.
    noise = torch.randn(START.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result, original = inverse.step(noise, 0, START)
    assert torch.allclose(result, forward.add_noise(START, noise, 0))
    assert torch.allclose(original, START)


def test_one_step_up_and_down_with_the_same_noise_is_the_identity():
    inverse, forward = DDIMInverseScheduler(), RespacedDDIMScheduler(clip_sample=False)
    noise = torch.randn(START.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scheduler in (inverse, forward):
        scheduler.set_timesteps(50)
    for t in inverse.timesteps.tolist():
        up, _ = inverse.step(noise, t, START)
        down, _ = forward.step(noise, t, up)
        assert torch.allclose(down, START, atol=1e-9)


def test_inversion_does_not_clip_unless_told_to(gaussian):
    bright = 1.5 + 0 * START
    noise = torch.zeros_like(START)
    assert torch.allclose(DDIMInverseScheduler().step(noise, 0, bright)[1], bright)
    assert float(DDIMInverseScheduler(clip_sample=True).step(noise, 0, bright)[1].max()) == 1.0


def test_reversed_step_goes_to_the_next_kept_timestep(gaussian):
    forward = RespacedDDIMScheduler(clip_sample=False)
    forward.set_timesteps(10)
    for t, following in pairwise(forward.kept):
        result, original = forward.reversed_step(gaussian.output(START, t), t, START)
        target = gaussian.alpha_bar[following]
        expected = target**0.5 * original + (1 - target) ** 0.5 * gaussian.output(START, t)
        assert torch.allclose(result, expected, atol=1e-6)
    with pytest.raises(ValueError, match="no successor"):
        forward.reversed_step(START, 999, START)
