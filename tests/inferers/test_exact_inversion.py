# SPDX-License-Identifier: Apache-2.0
"""Exact inversions: nothing asked, nothing changed; and what is asked, on Gaussian classes in closed form."""

from __future__ import annotations

import pytest
import torch

from medcf.inferers import DDPMInversionInferer, DirectInversionInferer, create_method
from medcf.inferers.residuals import Residuals
from medcf.networks import Condition, Denoiser
from medcf.sampling import Chain, make_generators, noised
from medcf.schedulers import DDIMInverseScheduler, RespacedDDIMScheduler, RespacedDDPMScheduler, create_scheduler

MEANS, STD = (-0.4, 0.2, 0.0), 0.2
METHODS = {"ddpm_inversion": DDPMInversionInferer, "direct_inversion": DirectInversionInferer}
SOLVERS = {
    "ddpm": lambda: RespacedDDPMScheduler(1000),
    "ddpm large": lambda: RespacedDDPMScheduler(1000, variance_type="fixed_large"),
    "ddim": lambda: RespacedDDIMScheduler(1000),
    "unipc": lambda: create_scheduler("unipc", num_train_timesteps=1000),
    "dpmpp": lambda: create_scheduler("dpmpp", num_train_timesteps=1000),
    "ddim 1": lambda: RespacedDDIMScheduler(1000, eta=1.0),
}


def judge(image):
    bright = image.flatten(1).mean(1) * 5
    return torch.stack([-bright, bright], dim=1)


@pytest.fixture
def images():
    """Two dark images, of class 0."""
    return -0.4 + 0.1 * torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def make(name, solver="ddpm", **options):
    defaults = {"num_inference_steps": 20, "strength": 0.7, "progress": False, "guidance_scale": 1.0, "target": 1}
    return create_method(name, scheduler=SOLVERS[solver](), classifier=judge, **(defaults | options))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_towards_the_source_the_input_comes_back(gaussian_classes, images, name, solver, scale):
    method = make(name, solver, guidance_scale=scale, source_guidance_scale=scale, target=0)
    result = method.explain(images, gaussian_classes(MEANS, STD), ["a", "b"], run_unchanged=True)
    torch.testing.assert_close(result.image, images, rtol=0, atol=1e-4)
    assert (result.num_function_evaluations > 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_in_64_bits_a_path_is_walked_to_its_end_to_8_digits(gaussian_classes, images, solver):
    network, scheduler = gaussian_classes(MEANS, STD).double(), SOLVERS[solver]()
    scheduler.clip_sample = False
    scheduler.set_timesteps(20)
    start, timesteps = images.double(), scheduler.timesteps_from(0.7)
    denoiser = Denoiser(network, scheduler, Condition(0, null=Condition(2), scale=2.0))
    chain = Chain(start, start, ["a", "b"], [0, 0], 0, timesteps, None, denoiser, scheduler)
    generators = make_generators(0, ["a", "b"])
    path = [noised(scheduler, start, t, generators) for t in timesteps]
    image = chain.run([Residuals([*path, start], chain, denoiser)], sample=path[0])
    torch.testing.assert_close(image, start, rtol=0, atol=1e-8)


def test_the_way_up_by_ddim_is_walked_down_to_8_digits(gaussian_classes, images):
    network, scheduler = gaussian_classes(MEANS, STD).double(), RespacedDDIMScheduler(1000, clip_sample=False)
    scheduler.set_timesteps(20)
    start, timesteps = images.double(), scheduler.timesteps_from(0.7)
    denoiser = Denoiser(network, scheduler, Condition(0))
    inverse = DDIMInverseScheduler().copy_schedule(scheduler)
    inverse.keep(timesteps[::-1])
    path = [start]
    for t in inverse.kept:
        path.append(inverse.posterior(denoiser(path[-1], t), t, path[-1]).mean)
    chain = Chain(start, start, ["a", "b"], [0, 0], 0, timesteps, None, denoiser, scheduler)
    plain = chain.run(sample=path[-1])
    assert (plain - start).abs().max() > 1e-4  # DDIM inversion alone is not exact
    image = chain.run([Residuals(path[::-1], chain, denoiser)], sample=path[-1])
    torch.testing.assert_close(image, start, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
@pytest.mark.parametrize("name", METHODS)
def test_gaussian_classes_of_equal_variance_differ_by_the_recursion(gaussian_classes, images, name, solver):
    """With x0(x) = m + K (x - sqrt(A) m), what differs from the path is d' = c0 (dm (1 - K sqrt A) + K d) + c1 d."""
    result = make(name, solver, clip_denoised=False).explain(images, gaussian_classes(MEANS, STD), ["a", "b"])
    scheduler = RespacedDDIMScheduler(1000) if name == "direct_inversion" else SOLVERS[solver]()
    scheduler.set_timesteps(20)
    difference, asked = 0.0, MEANS[1] - MEANS[0]
    for t in scheduler.timesteps_from(0.7):
        a, p = scheduler.alpha_bar(t), scheduler.alpha_bar_prev(t)
        k = a**0.5 * STD**2 / (a * STD**2 + 1 - a)
        if isinstance(scheduler, RespacedDDIMScheduler):
            c1 = ((1 - p) / (1 - a)) ** 0.5
            c0 = p**0.5 - c1 * a**0.5
        else:
            c0, c1 = p**0.5 * (1 - a / p) / (1 - a), (a / p) ** 0.5 * (1 - p) / (1 - a)
        difference = c0 * (asked * (1 - k * a**0.5) + k * difference) + c1 * difference
    torch.testing.assert_close(result.image - images, torch.full_like(images, difference), rtol=0, atol=1e-4)
    assert difference > 0.5 * asked


def test_paths_that_are_noised_apart_keep_more_of_the_input_than_a_chain(gaussian_classes, images):
    """The kept noise has a larger variance than a chain's, and holds the whole input: see the closed form above."""
    network = gaussian_classes(MEANS, STD)
    exact = make("ddpm_inversion").explain(images, network, ["a", "b"]).image
    chain = make("sdedit", null_class_labels=2).explain(images, network, ["a", "b"]).image

    def own(image):
        return (image - image.mean(dim=(1, 2, 3), keepdim=True)).flatten()

    kept, lost = (torch.corrcoef(torch.stack([own(image), own(images)]))[0, 1] for image in (exact, chain))
    assert kept > 0.999
    assert lost < 0.5


def test_a_null_source_needs_a_null_class():
    with pytest.raises(ValueError, match="source_condition='null' needs null_class_labels"):
        make("ddpm_inversion", source_condition="null", null_class_labels=None)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("soft", [False, True])
def test_kept_to_a_region_they_are_exact_too_and_change_nothing_outside(gaussian_classes, images, name, soft):
    region = torch.zeros(1, 1, 6, 6)
    region[..., 2:4] = 1
    if soft:
        region[..., 1] = 0.5
    network = gaussian_classes(MEANS, STD)
    options = {"region": region, "num_iterations": 2}
    same = make(name, target=0, **options).explain(images, network, ["a", "b"], run_unchanged=True)
    torch.testing.assert_close(same.image, images, rtol=0, atol=1e-4)
    changed = make(name, **options).explain(images, network, ["a", "b"]).image
    assert torch.equal(changed[..., 4:], images[..., 4:])
    assert (changed - images)[..., 2:4].mean() > 0.1
