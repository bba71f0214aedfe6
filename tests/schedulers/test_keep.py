# SPDX-License-Identifier: Apache-2.0
"""Chains by their own list of timesteps, and schedules handed from one solver to another."""

from __future__ import annotations

import pytest
import torch

from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedDDPMScheduler


@pytest.mark.parametrize("kind", [RespacedDDIMScheduler, RespacedDDPMScheduler, DDIMInverseScheduler])
def test_chain_steps_between_the_timesteps_that_it_was_given(kind):
    scheduler = kind(1000)
    scheduler.keep([3, 40, 555])
    assert scheduler.kept == (3, 40, 555)
    assert scheduler.num_inference_steps == 3
    assert [scheduler.previous(t) for t in (555, 40, 3)] == [40, 3, -1]
    ascending = kind is DDIMInverseScheduler
    assert scheduler.timesteps.tolist() == ([3, 40, 555] if ascending else [555, 40, 3])
    assert scheduler.timesteps_from(0.67) == ([3, 40] if ascending else [40, 3])


@pytest.mark.parametrize("timesteps", [[], [5, 3], [3, 3], [-1, 4], [4, 1000]])
def test_lists_that_are_no_chain_are_refused(timesteps):
    with pytest.raises(ValueError, match="ascending list"):
        RespacedDDIMScheduler(1000).keep(timesteps)


def test_copied_schedule_is_that_of_the_other_solver():
    options = {"schedule": "scaled_linear_beta", "beta_end": 0.012, "set_alpha_to_one": False}
    options |= {"prediction_type": "v_prediction", "spacing": "leading", "steps_offset": 1}
    wanted = RespacedDDIMScheduler(500, **options)
    copied = RespacedDDIMScheduler(1000).copy_schedule(DDIMInverseScheduler(500, **options))
    for scheduler in (wanted, copied):
        scheduler.set_timesteps(7)
    assert copied.kept == wanted.kept
    sample, output = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    for t in wanted.kept:
        assert torch.equal(copied.step(output, t, sample)[0], wanted.step(output, t, sample)[0])
    noisy = [s.add_noise(sample, output, torch.tensor([499, 7])) for s in (copied, wanted)]
    assert torch.equal(*noisy)
