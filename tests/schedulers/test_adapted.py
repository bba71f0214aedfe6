# SPDX-License-Identifier: Apache-2.0
"""Schedulers of other libraries run by ours: the same list, noise levels and result as diffusers' own loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from medcf.sampling import denoise
from medcf.schedulers import PLMSScheduler, RespacedDDIMScheduler, adapt_scheduler, create_scheduler

diffusers = pytest.importorskip("diffusers")

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def of_stable_diffusion(name: str, **options: Any) -> Any:
    pndm = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **NOISE)
    return getattr(diffusers, name).from_config(pndm.config, **options)


def network(sample: torch.Tensor, t: int) -> torch.Tensor:
    return torch.tanh(sample * 1.3 + t / 700) + 0.3 * torch.sin(sample * 3)


@pytest.mark.parametrize(("steps", "strength"), [(75, 0.55), (75, 0.85), (75, 1.0), (10, 0.35), (10, 0.95)])
@pytest.mark.parametrize("name", ["PNDM", "DDIM", "UniPCMultistep", "DPMSolverMultistep", "EulerDiscrete", "DDPM"])
def test_a_cut_chain_is_that_of_a_pipeline_of_diffusers(name: str, steps: int, strength: float) -> None:
    options = {"timestep_spacing": "leading"} | ({"clip_sample": False} if name in ("DDIM", "DDPM") else {})
    theirs = of_stable_diffusion(f"{name}Scheduler", **options)
    ours = adapt_scheduler(theirs)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    start = steps - int(steps * strength)
    listed = theirs.timesteps[start:]
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(start)
    assert ours.timesteps_from(strength) == listed.tolist()
    clean, noise = torch.randn(2, 2, 4, 5).unbind()
    sample = ours.add_noise(clean, noise, int(listed[0]))
    expected = theirs.add_noise(clean, noise, listed[:1].repeat(2))
    if name != "EulerDiscrete":  # whose samples are scaled
        assert torch.allclose(sample, expected, atol=1e-5)
    for t in listed:
        output = network(theirs.scale_model_input(expected, t), int(t))
        drawn = {"generator": torch.Generator().manual_seed(int(t))} if name == "DDPM" else {}
        expected = theirs.step(output, t, expected, **drawn).prev_sample
    if name == "DDPM":
        for t in ours.timesteps_from(strength):
            sample, _ = ours.step(network(sample, t), t, sample, generator=torch.Generator().manual_seed(t))
    else:
        steps_along = ours.timesteps_from(strength)
        sample = denoise(lambda x, t: ours.convert(network(x, t), t, x), ours, sample, steps_along)
    assert torch.allclose(sample, expected, atol=1e-3 if name == "DDPM" else 1e-4)


def test_pndm_used_step_by_step_is_diffusers_from_noise() -> None:
    theirs = of_stable_diffusion("PNDMScheduler")
    ours = adapt_scheduler(theirs)
    assert isinstance(ours, PLMSScheduler)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    sample = expected = torch.randn(1, 4, 5)
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, int(t)), t, expected).prev_sample
        sample, _ = ours.step(network(sample, int(t)), t, sample)
    assert torch.allclose(sample, expected, atol=1e-4)


def test_a_strength_is_rounded_or_truncated_by_name() -> None:
    rounded, truncated = RespacedDDIMScheduler(1000), RespacedDDIMScheduler(1000, strength_rule="truncated")
    for scheduler in (rounded, truncated):
        scheduler.set_timesteps(75)
    assert [len(each.timesteps_from(0.85)) for each in (rounded, truncated)] == [64, 63]
    assert truncated.timesteps_from(0.85) == rounded.timesteps_from(0.84)
    assert RespacedDDIMScheduler().copy_schedule(truncated).strength_rule == "truncated"
    assert copy.deepcopy(truncated).start_timestep(0.85) == truncated.timesteps_from(0.85)[0]
    with pytest.raises(ValueError, match="amounts to 0 of 75"):
        truncated.timesteps_from(0.013)
    with pytest.raises(ValueError, match="strength_rule"):
        RespacedDDIMScheduler(1000, strength_rule="floor")


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler])
def test_monai_s_schedulers_keep_their_list_and_noise_levels(kind: Any) -> None:
    theirs = kind(
        1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195, prediction_type="v_prediction"
    )
    ours = adapt_scheduler(theirs)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    if kind is not PNDMScheduler:  # which lists Runge-Kutta's half steps, too
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert set(ours.timesteps.tolist()) <= set(theirs.timesteps.tolist())
    assert str(ours.prediction_type) == "v_prediction"
    assert ours.strength_rule == "rounded"
    clean, noise, t = torch.randn(2, 1, 5), torch.randn(2, 1, 5), torch.tensor([3, 900])
    assert torch.allclose(ours.add_noise(clean, noise, t), theirs.add_noise(clean, noise, t), atol=1e-5)


def test_settings_without_a_counterpart_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"use_karras_sigmas=True .* set it to False"):
        adapt_scheduler(of_stable_diffusion("DPMSolverMultistepScheduler", use_karras_sigmas=True))
    with pytest.raises(ValueError, match="HeunDiscreteScheduler has no counterpart"):
        adapt_scheduler(of_stable_diffusion("HeunDiscreteScheduler"))
    euler = adapt_scheduler(of_stable_diffusion("EulerDiscreteScheduler"))
    with pytest.raises(ValueError, match="timestep_spacing to leading"):
        euler.set_timesteps(75)
    with pytest.raises(ValueError, match="give one for each of the 1000"):
        create_scheduler("ddim").set_noise_levels(torch.ones(10))
