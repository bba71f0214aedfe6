# SPDX-License-Identifier: Apache-2.0
"""No input changes a scheduler, half precision loses nothing inside, and randomness belongs to the sample."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedDDPMScheduler

ALL = [RespacedDDPMScheduler, RespacedDDIMScheduler, DDIMInverseScheduler]
HALVES = [torch.float16, torch.bfloat16]


def tables(scheduler) -> list[torch.Tensor]:
    return [scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod, torch.tensor(scheduler._alpha_bars)]


def images(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 1, 16, generator=generator).to(dtype) for _ in range(2))


@pytest.mark.parametrize("scheduler_type", ALL)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_no_input_changes_the_stored_tables(scheduler_type, dtype):
    scheduler = scheduler_type()
    before = [(table.clone(), table.dtype) for table in tables(scheduler)]
    image, noise = images(dtype)
    times = torch.tensor([3, 700])
    scheduler.add_noise(image, noise, times)
    scheduler.get_velocity(image, noise, times)
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        scheduler.step(noise, t, image)
    for table, (value, kind) in zip(tables(scheduler), before, strict=True):
        assert table.dtype == kind
        assert torch.equal(table, value)
    fresh_image, fresh_noise = images(torch.float32)
    fresh = scheduler_type().add_noise(fresh_image, fresh_noise, times)
    assert torch.equal(scheduler.add_noise(fresh_image, fresh_noise, times), fresh)


@pytest.mark.parametrize("scheduler_type", ALL)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_steps_are_the_float32_steps_rounded_once(scheduler_type, dtype):
    scheduler = scheduler_type(clip_sample=False)
    scheduler.set_timesteps(10)
    image, noise = images(dtype)
    for t in scheduler.timesteps.tolist():
        step = scheduler.posterior(scheduler.convert(noise, t, image), t, image)
        exact = scheduler.posterior(scheduler.convert(noise.float(), t, image.float()), t, image.float())
        assert step.mean.dtype == torch.float32
        assert torch.equal(step.mean, exact.mean)
        result, original = scheduler.step(noise, t, image)
        assert result.dtype == original.dtype == dtype
        if step.variance == 0:
            assert torch.equal(result, exact.mean.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_noising_is_float32_noising_rounded_once(dtype):
    scheduler = RespacedDDPMScheduler()
    image, noise = images(dtype)
    times = torch.tensor([0, 999])
    for method in (scheduler.add_noise, scheduler.get_velocity):
        assert torch.equal(method(image, noise, times), method(image.float(), noise.float(), times).to(dtype))


def test_noising_follows_its_formula_per_sample(gaussian):
    scheduler = RespacedDDPMScheduler()
    image, noise = images(torch.float64)
    result = scheduler.add_noise(image, noise, torch.tensor([0, 700]))
    for i, t in enumerate((0, 700)):
        a = gaussian.alpha_bar[t]
        assert torch.allclose(result[i], a**0.5 * image[i] + (1 - a) ** 0.5 * noise[i], atol=1e-6)
        assert torch.allclose(result[i], scheduler.add_noise(image, noise, t)[i])


def test_an_integer_and_a_tensor_timestep_are_the_same_step():
    scheduler = RespacedDDIMScheduler()
    scheduler.set_timesteps(7)
    image, noise = images(torch.float32)
    for t in scheduler.timesteps:
        assert torch.equal(scheduler.step(noise, t, image)[0], scheduler.step(noise, int(t), image)[0])


@pytest.mark.parametrize("scheduler_type", ALL)
def test_copies_step_alike_and_independently(scheduler_type):
    scheduler = scheduler_type(spacing="trailing")
    scheduler.set_timesteps(25)
    image, noise = images(torch.float32)
    scheduler.add_noise(image, noise, torch.tensor([1, 2]))
    for twin in (copy.deepcopy(scheduler), pickle.load(io.BytesIO(pickle.dumps(scheduler)))):
        assert twin.kept == scheduler.kept
        t = scheduler.kept[9]
        assert torch.equal(
            twin.posterior(twin.convert(noise, t, image), t, image).mean,
            scheduler.posterior(scheduler.convert(noise, t, image), t, image).mean,
        )
        twin.set_timesteps(5)
        assert len(scheduler.kept) == 25


@pytest.mark.parametrize("scheduler_type", ALL)
def test_moving_and_casting_the_module_keeps_the_chain(scheduler_type):
    scheduler = scheduler_type()
    scheduler.set_timesteps(25)
    image, noise = images(torch.float32)
    t = scheduler.kept[9]
    before = scheduler.posterior(scheduler.convert(noise, t, image), t, image).mean
    moved = scheduler.to("cpu").half().eval()
    assert moved.state_dict() == {}
    assert torch.equal(moved.posterior(moved.convert(noise, t, image), t, image).mean, before)


def test_a_sample_draws_the_same_noise_alone_and_in_a_batch():
    scheduler = RespacedDDPMScheduler(variance_type="fixed_large")
    image, noise = (torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(k)) for k in (1, 2))

    def draw(which: list[int]) -> torch.Tensor:
        step = scheduler.posterior(scheduler.convert(noise[which], 500, image[which]), 500, image[which])
        return step.draw([torch.Generator().manual_seed(10 + i) for i in which])

    together = draw([0, 1, 2, 3])
    assert torch.equal(draw([2]), together[2:3])
    assert torch.equal(draw([3, 0]), together[[3, 0]])
    assert not torch.equal(together[0], together[1])


def test_a_deterministic_step_leaves_the_generators_alone():
    scheduler, generator = RespacedDDIMScheduler(), torch.Generator().manual_seed(4)
    state = generator.get_state()
    image, noise = images(torch.float32)
    scheduler.step(noise, 500, image, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_one_generator_per_sample_is_asked_for():
    scheduler = RespacedDDPMScheduler()
    image, noise = images(torch.float32)
    step = scheduler.posterior(scheduler.convert(noise, 500, image), 500, image)
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        step.draw([torch.Generator() for _ in range(3)])


def test_the_input_is_left_as_it_was():
    for scheduler_type in ALL:
        scheduler = scheduler_type()
        image, noise = images(torch.float32)
        before = image.clone(), noise.clone()
        scheduler.step(noise, 500, image)
        scheduler.add_noise(image, noise, torch.tensor([1, 2]))
        assert torch.equal(image, before[0])
        assert torch.equal(noise, before[1])


@pytest.mark.gpu
@pytest.mark.parametrize("scheduler_type", ALL)
def test_device_results_equal_cpu_results_without_waiting_for_the_device(scheduler_type):
    scheduler = scheduler_type().to("cuda")
    scheduler.set_timesteps(10)
    image, noise = images(torch.float32)
    on_device, noise_on_device = image.cuda(), noise.cuda()
    scheduler.add_noise(on_device, noise_on_device, torch.tensor([3, 700]).cuda())  # fills the device's table once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in scheduler.timesteps:
            prediction = scheduler.convert(noise_on_device, t, on_device)
            step = scheduler.posterior(prediction, t, on_device)
            step.draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    t = scheduler.kept[4]
    expected = scheduler.posterior(scheduler.convert(noise, t, image), t, image).mean
    result = scheduler.posterior(scheduler.convert(noise_on_device, t, on_device), t, on_device).mean
    assert torch.allclose(result.cpu(), expected, atol=1e-6)
