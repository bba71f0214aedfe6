# SPDX-License-Identifier: Apache-2.0
"""Methods of a class-conditional network over several passes: where each starts, what stays the input's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch._dynamo.testing import CompileCounterWithBackend

from medcf.guidance.regions import background
from medcf.inferers import conditional, create_method
from medcf.networks import AttentionInjection
from medcf.sampling import denoise, make_generators, noised, standard_noise
from medcf.schedulers import RespacedDDIMScheduler

IDS = ["a", "b"]


@pytest.fixture
def network(token_network):
    return token_network


@pytest.fixture
def volumes():
    return torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.6


def judge(image):
    bright = image.flatten(1).mean(1) * 5 + 2  # everything is of class 1
    return torch.stack([-bright, bright], dim=1)


def make(name="controlcg", **options):
    scheduler = RespacedDDIMScheduler(1000, prediction_type="v_prediction")
    defaults = {"num_inference_steps": 4, "progress": False, "guidance_scale": 3.0}
    return create_method(name, scheduler=scheduler, classifier=judge, target=0, **(defaults | options))


def one_pass(injected, method, network, start, references, number, strength, label=0):
    """A pass of ControlCG put together by hand."""
    scheduler = method.scheduler
    own, other = (make_generators(0, IDS, "cpu", (stream, number)) for stream in ("pass", "reference"))
    steps = scheduler.timesteps_from(strength)
    sample = standard_noise(start, own) if strength == 1 else noised(scheduler, start, steps[0], own)
    with torch.no_grad():
        options = {"generators": other, "injection": AttentionInjection(network)}
        denoiser = injected(network, scheduler, [label] * 2, 3.0, references, **options)
        return denoise(denoiser, scheduler, sample, steps, generators=own)


@pytest.mark.parametrize("strengths", [(0.5, 0.75), (1.0, 0.5), (0.5, 1.0)])
def test_a_pass_starts_from_the_one_before_and_reads_the_input_under_noise_of_its_own(
    injected, network, volumes, strengths
):
    method = make(strength=strengths, num_iterations=2)
    result = method.explain(volumes, network, IDS)
    first = one_pass(injected, method, network, volumes, volumes, 0, strengths[0]).clamp(-1, 1)
    second = one_pass(injected, method, network, first, volumes, 1, strengths[1]).clamp(-1, 1)
    torch.testing.assert_close(result.trajectory[:, 1], first, rtol=0, atol=1e-4)
    torch.testing.assert_close(result.trajectory[:, 2], second, rtol=0, atol=1e-4)
    for references, number in ((first, 1), (volumes, 0)):
        other = one_pass(injected, method, network, first, references, number, strengths[1])
        assert (other - second).abs().max() > 1e-2  # neither the first output as reference nor the first noise


def test_a_second_difference_of_the_same_classes_is_added_to_the_first_result(injected, network, volumes):
    method = make(strength=0.5, num_iterations=2, subtract_reconstruction=True)

    def classify(image):  # the inputs are of class 1, and of class 0 once anything has changed
        same = (image - volumes).abs().flatten(1).amax(1) < 1e-6
        return torch.stack([~same, same], 1).float()

    method.classifier = classify
    result = method.explain(volumes, network, IDS)
    image = volumes
    for number in (0, 1):
        wanted, source = (one_pass(injected, method, network, image, volumes, number, 0.5, label) for label in (0, 1))
        assert (wanted - source).abs().max() > 1e-2
        image = (image + wanted - source).clamp(-1, 1)
        torch.testing.assert_close(result.trajectory[:, number + 1], image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["controlcg", "ilvr", "ddim_inversion"])
def test_the_background_is_that_of_the_input_in_every_pass(network, volumes, monkeypatch, name):
    volumes[:, :, 0] = -1
    seen = []
    monkeypatch.setattr(conditional, "background", lambda image: seen.append(image.clone()) or background(image))
    result = make(name, num_iterations=2).explain(volumes, network, IDS)
    assert all(torch.equal(image, volumes) for image in seen)
    assert len(seen) >= 2
    assert (result.trajectory[:, 1:, :, 0] == -1).all()
    assert (result.image[:, :, 1:] > -1).any()


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("end", [0, 7])
def test_background_reaches_any_side_of_the_grid(volumes, axis, end):
    inner = tuple(4 for _ in range(3))
    index = list(inner)
    index[axis - 2] = end
    volumes[(slice(None), 0, *index)] = -1  # one voxel in the middle of that side
    volumes[(slice(None), 0, *inner)] = -1 if end else volumes[(slice(None), 0, *inner)]  # black, but enclosed
    wanted = torch.zeros_like(volumes, dtype=torch.bool)
    wanted[(slice(None), 0, *index)] = True
    assert torch.equal(background(volumes), wanted)


@pytest.mark.parametrize("shape", [(24, 17), (9, 8, 11)])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_background_is_every_black_component_that_reaches_the_border(shape, share):
    black = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)) < share
    found = background(torch.where(black, -1.0, 0.0)[:, None])[:, 0]
    for one, outside in zip(black.numpy(), found.numpy(), strict=True):
        labels, _ = ndimage.label(one)
        inside = np.pad(np.ones([side - 2 for side in shape], dtype=bool), 1)
        assert (outside == np.isin(labels, np.setdiff1d(labels[~inside], 0))).all()


def test_background_is_black_in_all_channels(volumes):
    image = torch.cat([volumes, volumes], 1)
    image[:, :, 0] = -1
    image[:, 0, 7] = -1  # of one channel alone
    assert background(image)[:, 0, 0].all()
    assert background(image).sum() == 2 * 64


def test_the_bar_expects_what_the_micro_batches_take(network, volumes, bars):
    for name, steps in (("controlcg", 4), ("ilvr", 4), ("ddim_inversion", 12)):
        make(name, memory_budget=1e-5, num_iterations=2).explain(volumes, network, IDS)
        assert bars[-1].totals[0] == 2 * steps
        assert bars[-1].totals[-1] == bars[-1].totals[-2] == 2 * 2 * steps  # what was done, and what had been expected


def test_a_compiled_network_is_compiled_once_for_all_steps_passes_and_images(network, volumes):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, backend=counter)
    method = make(num_iterations=2, strength=0.5)
    try:
        result = method.explain(volumes, compiled, IDS).image
        first = counter.frame_count
        method.explain(volumes * 0.9, compiled, IDS)
    finally:
        torch._dynamo.reset()
    assert first == counter.frame_count == 1
    torch.testing.assert_close(result, make(num_iterations=2, strength=0.5).explain(volumes, network, IDS).image)


def test_another_network_gets_an_injection_of_its_own(network, volumes):
    method, twin = make(strength=0.5), copy.deepcopy(network)
    for weight in twin.parameters():
        weight.data.mul_(1.2)
    expected = [make(strength=0.5).explain(volumes, one, IDS).image for one in (network, twin)]
    for one, wanted in ((network, expected[0]), (twin, expected[1]), (network, expected[0])):
        assert torch.equal(method.explain(volumes, one, IDS).image, wanted)
    method = method.with_options(injection_scale=0.3)
    wanted = make(strength=0.5, injection_scale=0.3).explain(volumes, network, IDS).image
    assert torch.equal(method.explain(volumes, network, IDS).image, wanted)


@pytest.mark.parametrize("w", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["controlcg", "ilvr", "ddim_inversion"])
def test_guidance_that_is_no_scale_is_refused(name, w):
    with pytest.raises(ValueError, match=r"use 1 \(no guidance\)"):
        make(name, guidance_scale=1 + w)
    with pytest.raises(ValueError, match=r"use 1 \(no guidance\)"):
        make(name, guidance_scale=None, guidance_w=w)


def test_the_papers_w_is_one_less_than_the_scale_that_all_methods_have():
    assert (
        make("ilvr", guidance_scale=None, guidance_w=2.5).options.scale
        == make("ilvr", guidance_scale=3.5).options.scale
        == 3.5
    )
    with pytest.raises(ValueError, match="give one"):
        make("ilvr", guidance_w=2.5, guidance_scale=3.5)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_injection_that_is_no_weight_is_refused(network, volumes, scale):
    with pytest.raises(ValueError, match="is a weight"):
        make(injection_scale=scale)
    with pytest.raises(ValueError, match=r"use 1 \(no guidance\)"):
        make().explain_targets(volumes, network, [0], [1.0, scale])
