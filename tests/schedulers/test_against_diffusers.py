# SPDX-License-Identifier: Apache-2.0
"""Golden comparison with diffusers, where it is installed, on the spacings it follows exactly."""

from __future__ import annotations

import pytest
import torch

from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

diffusers = pytest.importorskip("diffusers")

LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def images(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 2, 7, generator=generator), torch.randn(1, channels, 7, generator=generator)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("count", [10, 50, 400])
def test_ddpm_steps_are_those_of_diffusers(spacing, variance_type, prediction_type, count):
    options = {"variance_type": variance_type, "prediction_type": prediction_type, "clip_sample": True}
    theirs = diffusers.DDPMScheduler(beta_schedule="linear", timestep_spacing=spacing, **options, **LINEAR)
    ours = RespacedDDPMScheduler(spacing=spacing, **options, **LINEAR)
    theirs.set_timesteps(count)
    ours.set_timesteps(count)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    sample, output = images(4 if variance_type == "learned_range" else 2)
    for t in ours.timesteps.tolist()[:: max(1, count // 10)]:
        # At timestep 0 nothing is drawn by either; a trailing chain ends above 0, where diffusers still draws.
        if ours.previous(t) < 0 and t > 0:
            continue
        result, original = ours.step(output, t, sample, generator=torch.Generator().manual_seed(5))
        expected = theirs.step(output, t, sample, generator=torch.Generator().manual_seed(5))
        assert torch.allclose(original, expected.pred_original_sample, rtol=1e-3, atol=1e-4)
        assert torch.allclose(result, expected.prev_sample, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("use_clipped_model_output", [True, False])
@pytest.mark.parametrize(("count", "offset"), [(10, 0), (50, 1)])
def test_ddim_steps_are_those_of_diffusers(eta, clip_sample, use_clipped_model_output, count, offset):
    shared = {"clip_sample": clip_sample, "set_alpha_to_one": offset == 0, "steps_offset": offset}
    theirs = diffusers.DDIMScheduler(beta_schedule="linear", timestep_spacing="leading", **shared, **LINEAR)
    ours = RespacedDDIMScheduler(
        spacing="leading", eta=eta, use_clipped_model_output=use_clipped_model_output, **shared, **LINEAR
    )
    theirs.set_timesteps(count)
    ours.set_timesteps(count)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    sample, output = images(2)
    for t in ours.timesteps.tolist():
        result, _ = ours.step(output, t, sample, generator=torch.Generator().manual_seed(5))
        expected = theirs.step(
            output,
            t,
            sample,
            eta=eta,
            use_clipped_model_output=use_clipped_model_output,
            generator=torch.Generator().manual_seed(5),
        )
        assert torch.allclose(result, expected.prev_sample, rtol=1e-3, atol=2e-4)
