# SPDX-License-Identifier: Apache-2.0
"""Fixed, learned and learned-range variance of the shortened chain."""

from __future__ import annotations

import math

import pytest
import torch

from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

COUNT = 400


def scheduler_of(variance_type: str) -> RespacedDDPMScheduler:
    scheduler = RespacedDDPMScheduler(variance_type=variance_type, clip_sample=False)
    scheduler.set_timesteps(COUNT)
    return scheduler


def beta_and_posterior(gaussian, scheduler, index: int) -> tuple[float, float]:
    a = gaussian.alpha_bar[scheduler.kept[index]]
    p = gaussian.alpha_bar[scheduler.kept[index - 1]] if index > 0 else 1.0
    return 1 - a / p, (1 - a / p) * (1 - p) / (1 - a)


def learned_step(scheduler, t: int, raw: float):
    sample = torch.full((2, 1, 3), 0.4, dtype=torch.float64)
    output = torch.cat([torch.full_like(sample, 0.1), torch.full_like(sample, raw)], dim=1)
    return scheduler.posterior(scheduler.convert(output, t, sample), t, sample)


@pytest.mark.parametrize("index", [1, 2, 119, 399])
def test_fixed_variances_are_those_between_kept_steps(gaussian, index):
    for variance_type, column in (("fixed_large", 0), ("fixed_small", 1)):
        scheduler = scheduler_of(variance_type)
        expected = beta_and_posterior(gaussian, scheduler, index)[column]
        assert scheduler.variance(scheduler.kept[index]) == pytest.approx(expected, rel=1e-5)


def test_at_the_end_of_the_chain_only_fixed_large_still_scales_guidance(gaussian):
    small, large = scheduler_of("fixed_small"), scheduler_of("fixed_large")
    assert small.variance(0) == 0.0
    assert large.variance(0) == pytest.approx(beta_and_posterior(gaussian, large, 1)[1], rel=1e-4)
    sample = torch.zeros(1, 1, 2)
    step = large.posterior(large.convert(sample, 0, sample), 0, sample)
    assert step.variance == 0.0
    assert step.gain == large.variance(0)
    assert torch.equal(step.draw(), step.mean)


def test_variance_over_the_paper_s_depth_sums_to_that_of_the_kept_chain():
    """Un-respaced variances would sum to 0.37, and guide 2.5 times too weakly."""
    scheduler = scheduler_of("fixed_large")
    chain = scheduler.timesteps_from(0.3)
    assert sum(scheduler.variance(t) for t in chain) == pytest.approx(0.914, abs=1e-3)
    assert float(scheduler.betas[chain].sum()) == pytest.approx(0.37, abs=0.01)


@pytest.mark.parametrize("index", [0, 1, 119, 399])
def test_learned_range_interpolates_between_the_logs(gaussian, index):
    scheduler = scheduler_of("learned_range")
    t = scheduler.kept[index]
    beta = beta_and_posterior(gaussian, scheduler, index)[0]
    floor = beta_and_posterior(gaussian, scheduler, max(index, 1))[1]
    for raw, expected in ((-1.0, floor), (1.0, beta), (0.0, math.sqrt(beta * floor))):
        step = learned_step(scheduler, t, raw)
        assert torch.allclose(step.gain, torch.full_like(step.mean, expected), rtol=1e-3, atol=0)


def test_learned_variance_is_the_network_s_second_half():
    step = learned_step(scheduler_of("learned"), 298, 0.25)
    assert torch.equal(step.variance, torch.full_like(step.mean, 0.25))
    noise = (step.draw(torch.Generator().manual_seed(1)) - step.mean) / 0.5
    expected = torch.randn(step.mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(noise, expected)


def test_learned_variance_leaves_the_mean_alone_and_is_ignored_by_fixed_variances_and_ddim():
    sample, output = torch.randn(2, 3, 5), torch.randn(2, 6, 5)
    schedulers = [scheduler_of("learned_range"), scheduler_of("fixed_large"), RespacedDDIMScheduler(clip_sample=False)]
    for scheduler in schedulers:
        scheduler.set_timesteps(COUNT)
        full = scheduler.posterior(scheduler.convert(output, 298, sample), 298, sample)
        if "learned" not in str(getattr(scheduler, "variance_type", "")):
            half = scheduler.posterior(scheduler.convert(output[:, :3], 298, sample), 298, sample)
            assert full.variance == half.variance
            assert torch.equal(full.mean, half.mean)
        else:
            fixed = schedulers[1].posterior(schedulers[1].convert(output, 298, sample), 298, sample)
            assert torch.equal(full.mean, fixed.mean)


def test_learned_range_draws_nothing_at_the_end():
    step = learned_step(scheduler_of("learned_range"), 0, 0.3)
    assert step.variance == 0.0
    assert (step.gain > 0).all()


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_a_missing_learned_variance_is_an_error_that_says_what_to_do(variance_type):
    scheduler, sample = scheduler_of(variance_type), torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="output channels"):
        scheduler.step(sample, 999, sample)


def test_one_step_chain_has_finite_learned_range_variance():
    scheduler = RespacedDDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(1)
    assert torch.isfinite(learned_step(scheduler, 999, -1.0).gain).all()
