# SPDX-License-Identifier: Apache-2.0
"""Noise, clean image and velocity are three views of one prediction."""

from __future__ import annotations

import pytest
import torch

from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

TYPES = ["epsilon", "sample", "v_prediction"]


@pytest.mark.parametrize("t", [0, 298, 999])
def test_all_parameterizations_of_one_network_agree(t, gaussian):
    sample = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 9)
    expected = {name: gaussian.output(sample, t, name) for name in TYPES}
    for name in TYPES:
        scheduler = RespacedDDPMScheduler(prediction_type=name)
        prediction = scheduler.convert(expected[name], t, sample)
        assert torch.allclose(prediction.noise, expected["epsilon"], atol=1e-4)
        assert torch.allclose(prediction.original, expected["sample"], atol=1e-4)
        assert torch.allclose(prediction.velocity, expected["v_prediction"], atol=1e-4)


@pytest.mark.parametrize("t", [0, 298, 999])
def test_conversion_undoes_noising(t):
    torch.manual_seed(0)
    original, noise = torch.randn(2, 1, 8, dtype=torch.float64), torch.randn(2, 1, 8, dtype=torch.float64)
    times = torch.tensor([t, t])
    for name in TYPES:
        scheduler = RespacedDDIMScheduler(prediction_type=name)
        noised = scheduler.add_noise(original, noise, times)
        target = {
            "epsilon": noise,
            "sample": original,
            "v_prediction": scheduler.get_velocity(original, noise, times),
        }[name]
        prediction = scheduler.convert(target, t, noised)
        assert torch.allclose(prediction.original, original)
        assert torch.allclose(prediction.noise, noise)


def test_the_clean_image_is_not_clipped_but_the_step_clips_it():
    scheduler = RespacedDDPMScheduler(clip_sample_min=-0.5, clip_sample_max=0.25)
    sample = torch.tensor([[[3.0, -3.0, 0.1]]])
    prediction = scheduler.convert(torch.zeros(1, 1, 3), 298, sample)
    assert prediction.original.max() > 1
    step = scheduler.posterior(prediction, 298, sample)
    assert step.pred_original.flatten().tolist()[:2] == [0.25, -0.5]


def test_conversion_is_differentiable_in_the_sample_and_the_output(gaussian):
    """For Gaussian data d x̂0 / d x_t is K, through the network and the conversion."""
    scheduler, t = RespacedDDPMScheduler(), 298
    sample = torch.tensor([[[0.2, -0.7]]], dtype=torch.float64, requires_grad=True)
    original = scheduler.convert(gaussian.output(sample, t), t, sample).original
    (gradient,) = torch.autograd.grad(original.sum(), sample)
    a, s2 = gaussian.alpha_bar[t], gaussian.std**2
    assert torch.allclose(gradient, torch.full_like(sample, a**0.5 * s2 / (a * s2 + 1 - a)), atol=1e-6)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="3 channels for a sample of 2"):
        RespacedDDPMScheduler().convert(torch.zeros(1, 3, 4), 5, torch.zeros(1, 2, 4))


def test_clipped_ddim_keeps_the_network_s_noise_unless_told_to_recompute_it():
    sample, output, t = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -0.5), 500
    plain = RespacedDDIMScheduler()
    recomputed = RespacedDDIMScheduler(use_clipped_model_output=True)
    for scheduler in (plain, recomputed):
        scheduler.set_timesteps(1000)
    a, p = plain.alpha_bar(t), plain.alpha_bar(t - 1)
    kept_noise = p**0.5 * 1.0 + (1 - p) ** 0.5 * -0.5
    new_noise = p**0.5 * 1.0 + (1 - p) ** 0.5 * (2.0 - a**0.5) / (1 - a) ** 0.5
    assert float(plain.step(output, t, sample)[0]) == pytest.approx(kept_noise, abs=1e-6)
    assert float(recomputed.step(output, t, sample)[0]) == pytest.approx(new_noise, abs=1e-6)
