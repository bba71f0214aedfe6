# SPDX-License-Identifier: Apache-2.0
"""The denoising loop: order of hooks, randomness per sample, and no waiting for the device."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medcf.guidance import CounterfactualLoss, X0Gradient, XtGradient
from medcf.networks import Condition, Denoiser
from medcf.sampling import Hook, denoise, make_generators, noised
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

IDS = [f"case{i}" for i in range(8)]


@pytest.fixture
def images():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def make_scheduler(kind=RespacedDDPMScheduler, steps=20, **kwargs):
    scheduler = kind(1000, **kwargs)
    scheduler.set_timesteps(steps)
    return scheduler


def run(network, scheduler, images, ids, hooks=(), seed=0, strength=0.5):
    """Noise images to a strength and denoise them."""
    generators = make_generators(seed, ids)
    timesteps = scheduler.timesteps_from(strength)
    start = noised(scheduler, images, timesteps[0], generators)
    denoiser = Denoiser(network, scheduler)
    return denoise(denoiser, scheduler, start, timesteps, generators=generators, hooks=hooks)


def make_estimator(kind, reference):
    torch.manual_seed(4)
    classifier = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    target = torch.ones(len(reference), dtype=torch.long)
    return kind(CounterfactualLoss(classifier, torch.nn.Conv2d(1, 2, 3), 40.0, 30.0).bind(reference, target))


@pytest.mark.parametrize("estimator", [X0Gradient, XtGradient])
def test_a_case_alone_agrees_with_the_same_case_in_a_batch_of_eight(tiny_unet, images, estimator):
    network, scheduler = tiny_unet(), make_scheduler()
    together = run(network, scheduler, images, IDS, [make_estimator(estimator, images)])
    order = [5, 2, 7, 0, 1, 3, 4, 6]
    shuffled = run(
        network, scheduler, images[order], [IDS[i] for i in order], [make_estimator(estimator, images[order])]
    )
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-4)
    for i in (0, 3, 7):
        one = slice(i, i + 1)
        alone = run(network, scheduler, images[one], IDS[one], [make_estimator(estimator, images[one])])
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-4)
    other = run(network, scheduler, images, IDS, [make_estimator(estimator, images)], seed=1)
    assert (other - together).abs().amax(dim=(1, 2, 3)).min() > 0.1  # the agreement is not for want of noise


def test_the_loop_is_the_formula_written_out(tiny_unet, images):
    network, scheduler = tiny_unet(), make_scheduler(variance_type="fixed_small")
    result = run(network, scheduler, images, IDS, [make_estimator(X0Gradient, images)])

    table = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()
    kept = [round(i * 999 / 19) for i in range(10)]
    generators, estimator = make_generators(0, IDS), make_estimator(X0Gradient, images)

    def noise():
        return torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators])

    x = table[kept[-1]] ** 0.5 * images + (1 - table[kept[-1]]) ** 0.5 * noise()
    for i in reversed(range(10)):
        a, p = table[kept[i]], table[kept[i - 1]] if i else 1.0
        with torch.no_grad():
            epsilon = network(x, timesteps=torch.full((8,), kept[i]))
        clean = ((x - (1 - a) ** 0.5 * epsilon) / a**0.5).clamp(-1, 1)
        beta = 1 - a / p
        sigma2 = beta * (1 - p) / (1 - a)
        mean = p**0.5 * beta / (1 - a) * clean + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        x = mean - sigma2 * estimator.at(clean)
        if i:
            x = x + sigma2**0.5 * noise()
    torch.testing.assert_close(result, x, rtol=0, atol=1e-4)


def test_hooks_run_in_order_and_see_what_they_change(gaussian_network, images):
    log = []

    class Tell(Hook):
        def __init__(self, name):
            self.name = name

        def before_model(self, sample, t):
            log.append((self.name, "before", t))
            return sample + 1

        def on_step(self, step):
            log.append((self.name, "step", float((step.sample - images).mean())))
            return step

        def after_step(self, sample, step):
            log.append((self.name, "after", step.timestep))
            return sample.zero_()

    scheduler = make_scheduler(RespacedDDIMScheduler, clip_sample=False)
    denoiser = Denoiser(gaussian_network(0.3, 0.2), scheduler)
    result = denoise(denoiser, scheduler, images, [53], hooks=(Tell("a"), Tell("b")))
    assert [entry[:2] for entry in log] == [(n, p) for p in ("before", "step", "after") for n in ("a", "b")]
    assert log[0][2] == log[-1][2] == 53
    assert log[2][2] == pytest.approx(2, abs=1e-5)  # the model saw both changes
    assert result.abs().max() == 0


def test_hook_by_itself_changes_nothing(gaussian_network, images):
    scheduler = make_scheduler()
    network = gaussian_network(0.3, 0.2)

    class Nothing(Hook):
        pass

    torch.testing.assert_close(
        run(network, scheduler, images, IDS, [Nothing()]), run(network, scheduler, images, IDS), rtol=0, atol=0
    )


def test_progress_counts_steps(gaussian_network, images):
    class Bar:
        count = 0

        def update(self, n):
            self.count += n

    scheduler, bar = make_scheduler(), Bar()
    denoiser = Denoiser(gaussian_network(0.3, 0.2), scheduler)
    denoise(denoiser, scheduler, images, scheduler.timesteps_from(0.5), progress=bar)
    assert bar.count == 10


class NoReadBack(TorchDispatchMode):
    """Fails on every operation that reads a tensor's value back to Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        forbidden = ("_local_scalar_dense", "is_nonzero", "equal.default", "nonzero", "masked_select")
        if any(name in str(func) for name in forbidden):
            raise AssertionError(f"The loop waited for the device in {func}.")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("estimator", [X0Gradient, XtGradient])
@pytest.mark.parametrize("kind", [RespacedDDPMScheduler, RespacedDDIMScheduler])
def test_the_loop_never_reads_a_tensor_back(tiny_unet, images, estimator, kind):
    network, scheduler = tiny_unet(num_class_embeds=3), make_scheduler(kind)
    denoiser = Denoiser(network, scheduler, Condition(1, null=Condition(2), scale=2))
    denoiser(images, 0)  # makes its plan, once
    hooks = [make_estimator(estimator, images)]
    timesteps, generators = scheduler.timesteps_from(0.2), make_generators(0, IDS)
    with NoReadBack():
        denoise(denoiser, scheduler, images, timesteps, generators=generators, hooks=hooks)
    with pytest.raises(AssertionError, match="waited"), NoReadBack():
        bool(images.sum() > 0)


@pytest.mark.gpu
def test_the_loop_never_synchronizes_a_gpu(tiny_unet, images):
    network, scheduler, device = tiny_unet().cuda(), make_scheduler(), torch.device("cuda")
    denoiser, generators = Denoiser(network, scheduler), make_generators(0, IDS, device)
    sample, timesteps = images.to(device), scheduler.timesteps_from(0.5)
    denoise(denoiser, scheduler, sample, timesteps, generators=generators)
    torch.cuda.set_sync_debug_mode("error")
    try:
        denoise(denoiser, scheduler, sample, timesteps, generators=generators)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_generators_depend_on_seed_sample_and_stream_alone():
    def draw(generator):
        return torch.randn(4, generator=generator).tolist()

    first, second = make_generators(3, ["a", "b"])
    again = make_generators(3, ["b", "a"])
    assert draw(again[1]) == draw(first)
    assert draw(again[0]) == draw(second)
    others = [
        make_generators(4, ["a"])[0],
        make_generators(3, ["c"])[0],
        make_generators(3, ["a"], stream=("pass", 1))[0],
    ]
    drawn = [draw(generator) for generator in (*others, *make_generators(3, ["a", "b"]))]
    assert len({tuple(values) for values in drawn}) == 5


def test_noised_images_have_the_moments_of_the_forward_process():
    scheduler, image = make_scheduler(), torch.full((2, 1, 300, 300), 0.7)
    noisy = noised(scheduler, image, 298, make_generators(0, ["a", "b"]))
    a = scheduler.alpha_bar(298)
    assert float(noisy.mean()) == pytest.approx(0.7 * a**0.5, abs=4 * ((1 - a) / noisy.numel()) ** 0.5)
    assert float(noisy.var()) == pytest.approx(1 - a, rel=4 * (2 / noisy.numel()) ** 0.5)


def test_wrong_number_of_generators_is_refused(images):
    with pytest.raises(ValueError, match="2 generators for a batch of 8"):
        noised(make_scheduler(), images, 298, make_generators(0, ["a", "b"]))
