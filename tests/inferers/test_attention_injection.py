# SPDX-License-Identifier: Apache-2.0
"""ControlCG: exact guidance on Gaussian classes, the stacked forward written out, and what several targets share."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medcf.guidance.regions import background
from medcf.inferers import AttentionInjectionInferer, create_method
from medcf.networks import Condition, Denoiser
from medcf.networks.attention_injection import AttentionInjection
from medcf.sampling import denoise, make_generators, standard_noise
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

MEANS, STD = (-0.4, 0.1, 0.0), 0.2  # of two classes and the null class
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()


@pytest.fixture
def network(token_network):
    return token_network


@pytest.fixture
def volumes():
    return torch.rand(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.6


def judge(image):
    bright = image.flatten(1).mean(1) * 5 + 2  # everything is of class 1
    return torch.stack([-bright, bright], dim=1)


def make(scheduler=None, target=0, **options):
    scheduler = RespacedDDIMScheduler(1000, prediction_type="v_prediction") if scheduler is None else scheduler
    defaults = {"num_inference_steps": 4, "progress": False}
    return create_method("controlcg", scheduler=scheduler, classifier=judge, target=target, **(defaults | options))


def recorded(network, run):
    """Batch sizes with which the network was called."""
    sizes = []
    handle = network.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    run()
    handle.remove()
    return sizes


@pytest.mark.parametrize("w", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("solver", [RespacedDDIMScheduler, RespacedDDPMScheduler])
def test_guidance_moves_the_mean_by_w_times_the_distance_to_the_null_class(
    gaussian_classes, gaussian_network, volumes, w, solver
):
    """(1 + w) eps_c - w eps_null of equal variances is the noise of N(m_c + w (m_c - m_null), s^2)."""
    scheduler = solver(1000)
    options = {"guidance_scale": 1 + w, "injection_scale": 0.0, "clip_denoised": False, "num_inference_steps": 12}
    result = make(scheduler, **options).explain(volumes, gaussian_classes(MEANS, STD), list("abc")).image
    shifted = gaussian_network(MEANS[0] + w * (MEANS[0] - MEANS[2]), STD)
    scheduler.clip_sample = False
    scheduler.set_timesteps(12)
    generators = make_generators(0, list("abc"), "cpu", ("pass", 0))
    start = standard_noise(volumes, generators)
    steps = scheduler.timesteps.tolist()
    wanted = denoise(Denoiser(shifted, scheduler), scheduler, start, steps, generators=generators)
    torch.testing.assert_close(result, wanted.clamp(-1, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("condition", ["same", "null"])
def test_the_loop_is_the_formula_written_out(network, volumes, condition):
    y0, w, steps = volumes[:1], 2.0, [999, 666, 333, 0]
    result = make(guidance_scale=1 + w, reference_condition=condition, clip_denoised=False).explain(y0, network, ["a"])
    own, other = make_generators(0, ["a"], "cpu", ("pass", 0)), make_generators(0, ["a"], "cpu", ("reference", 0))
    x = torch.randn(1, 8, 8, 8, generator=own[0])[None]
    labels, reads = ([0, 2, 0, 2], [2, 3, 2, 3]) if condition == "same" else ([0, 2, 2], [2, 2, 2])
    with torch.no_grad(), AttentionInjection(network) as injection:
        injection.reference = reads
        for i, t in enumerate(steps):
            a, p = TABLE[t], TABLE[steps[i + 1]] if i < 3 else 1.0
            y = a**0.5 * y0 + (1 - a) ** 0.5 * torch.randn(1, 8, 8, 8, generator=other[0])[None]
            stack = torch.cat([x, x, *[y] * (len(labels) - 2)])
            v = network(stack, timesteps=torch.full((len(stack),), t), class_labels=torch.tensor(labels))
            v = (1 + w) * v[:1] - w * v[1:2]
            clean, noise = a**0.5 * x - (1 - a) ** 0.5 * v, a**0.5 * v + (1 - a) ** 0.5 * x
            x = p**0.5 * clean + (1 - p) ** 0.5 * noise
    torch.testing.assert_close(result.image, x.clamp(-1, 1), rtol=0, atol=1e-4)
    plain = make(guidance_scale=1 + w, injection_scale=0, clip_denoised=False).explain(y0, network, ["a"]).image
    assert (plain - result.image).abs().max() > 1e-3  # the agreement is not for want of an effect


def test_without_injection_it_is_classifier_free_guidance_bit_for_bit(network, volumes):
    method = make(guidance_scale=3.5, injection_scale=0.0)
    result = method.explain(volumes, network, list("abc")).image
    scheduler = method.scheduler
    denoiser = Denoiser(network, scheduler, Condition(0, null=Condition(2), scale=3.5))
    start = standard_noise(volumes, make_generators(0, list("abc"), "cpu", ("pass", 0)))
    with torch.no_grad():
        wanted = denoise(denoiser, scheduler, start, scheduler.timesteps.tolist())
    assert torch.equal(result, wanted.clamp(-1, 1))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 4),
        ({"reference_condition": "null"}, 3),
        ({"guidance_scale": 1}, 2),
        ({"guidance_scale": 1, "reference_condition": "null"}, 2),
        ({"injection_scale": 0}, 2),
        ({"injection_scale": 0, "guidance_scale": 1}, 1),
    ],
)
def test_one_forward_a_step_stacks_only_what_is_needed(network, volumes, options, rows):
    method, results = make(**options), []
    sizes = recorded(network, lambda: results.append(method.explain(volumes, network)))
    assert sizes == [3 * rows] * 4
    assert results[0].num_function_evaluations.tolist() == [4 * rows] * 3


def test_full_strength_depends_on_the_input_through_injection_alone(network, volumes):
    first, second = volumes[:1], volumes[1:2]
    off, on = make(injection_scale=0), make()
    assert torch.equal(off.explain(first, network, ["a"]).image, off.explain(second, network, ["a"]).image)
    assert (on.explain(first, network, ["a"]).image - on.explain(second, network, ["a"]).image).abs().max() > 1e-3
    partial = make(injection_scale=0, strength=0.5)
    changed = partial.explain(first, network, ["a"]).image - partial.explain(second, network, ["a"]).image
    assert changed.abs().max() > 1e-3


def test_reference_with_the_start_noise_equals_the_sample_at_the_first_step(network, volumes):
    """Then self-attention sees every token twice, and a single step is that of guidance alone."""
    single = {"num_inference_steps": 5, "strength": 0.2}
    off = make(injection_scale=0, **single).explain(volumes, network, list("abc")).image
    start = make(reference_noise="start", **single).explain(volumes, network, list("abc")).image
    shared = make(reference_noise="shared", strength=0.4, num_inference_steps=5)
    torch.testing.assert_close(start, off, rtol=0, atol=1e-5)
    off = make(injection_scale=0, strength=0.4, num_inference_steps=5).explain(volumes, network, list("abc")).image
    assert (shared.explain(volumes, network, list("abc")).image - off).abs().max() > 1e-4


@pytest.mark.parametrize("noise", ["fresh", "shared", "start"])
def test_reference_is_the_input_noised_to_the_step(injected, gaussian_classes, volumes, noise):
    scheduler = RespacedDDIMScheduler(1000)
    scheduler.set_timesteps(6)
    net = gaussian_classes(MEANS, STD)
    ids, stream = ["a"], ("pass" if noise == "start" else "reference", 0)
    generators = make_generators(0, ids, "cpu", stream)
    fixed = None if noise == "fresh" else standard_noise(volumes[:1], generators)
    options = {"generators": generators, "noise": fixed, "injection": nullcontext()}
    denoiser = injected(net, scheduler, [1], 1.0, volumes[:1], **options)
    start = standard_noise(volumes[:1], make_generators(0, ids, "cpu", ("pass", 0)))
    denoise(denoiser, scheduler, start, scheduler.timesteps.tolist())
    drawn = []
    for stack, timesteps, labels in net.calls:
        a = TABLE[int(timesteps[0])]
        assert labels.tolist() == [1, 1]
        drawn.append((stack[1:] - a**0.5 * volumes[:1]) / (1 - a) ** 0.5)
    spread = torch.cat(drawn).std(0).mean()
    assert float(torch.cat(drawn[:-1]).std()) == pytest.approx(1, abs=0.1)
    assert (spread > 0.5) if noise == "fresh" else (spread < 1e-3)
    distance = (drawn[0] - start).abs().max()
    assert (distance < 1e-4) if noise == "start" else (distance > 0.5)


@pytest.mark.parametrize("noise", ["fresh", "shared", "start"])
def test_result_depends_on_seed_and_identity_and_not_on_the_batch(network, volumes, noise):
    method, ids = make(reference_noise=noise, strength=0.75), list("abc")
    together = method.explain(volumes, network, ids).image
    assert torch.equal(method.explain(volumes, network, ids).image, together)
    for i in range(3):
        alone = method.explain(volumes[i : i + 1], network, ids[i : i + 1]).image
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)
    swapped = method.explain(volumes.flip(0), network, ids[::-1]).image
    torch.testing.assert_close(swapped.flip(0), together, rtol=0, atol=1e-4)
    for other in (make(reference_noise=noise, strength=0.75, seed=1), method):
        renamed = ids if other is not method else list("xyz")
        assert (other.explain(volumes, network, renamed).image - together).abs().amax((1, 2, 3, 4)).min() > 0.05


@pytest.mark.parametrize("condition", ["same", "null"])
@pytest.mark.parametrize("budget", [None, 0.0002])
def test_targets_and_scales_together_give_the_results_of_separate_runs(network, volumes, condition, budget):
    options = {"reference_condition": condition, "strength": 0.75}
    calls, results = [], {}
    method = make(memory_budget=budget, **options)

    def run():
        targets, scales = [0, 1], [1.0, 3.0]
        results.update(method.explain_targets(volumes, network, targets, scales, list("abc"), run_unchanged=True))

    calls = recorded(network, run)
    assert list(results) == [(0, 1.0), (0, 3.0), (1, 1.0), (1, 3.0)]
    for (target, scale), result in results.items():
        alone = make(target=target, guidance_scale=scale, **options).explain(
            volumes, network, list("abc"), run_unchanged=True
        )
        torch.testing.assert_close(result.image, alone.image, rtol=0, atol=1e-4)
        torch.testing.assert_close(result.confidences, alone.confidences, rtol=0, atol=1e-4)
        torch.testing.assert_close(result.trajectory[:, 0], volumes)
        assert result.target.tolist() == [target] * 3
        assert result.extras["guidance_scale"].tolist() == [scale] * 3
    if budget is None:
        references = {"same": 3, "null": 1}[condition]  # y of each class and of none; or of none alone
        assert calls == [3 * (2 + 4 + references)] * 3
        assert sum(calls) == sum(result.total_function_evaluations for result in results.values())


def test_several_targets_leave_out_the_one_that_the_input_has(network, volumes):
    results = make().explain_targets(volumes, network, [0, 1], sample_ids=list("abc"))
    assert results[1, 3.0].unchanged.all()
    assert torch.equal(results[1, 3.0].image, volumes)
    torch.testing.assert_close(
        results[0, 3.0].image, make().explain(volumes, network, list("abc")).image, rtol=0, atol=1e-4
    )
    for targets, scales in (([], None), ([0, 0], None), ([0], [1.0, 1.0]), ([0], [0.5])):
        with pytest.raises(ValueError, match="guidance_scales"):
            make().explain_targets(volumes, network, targets, scales)
    with pytest.raises(ValueError, match="has classes 0 to 1"):
        make().explain_targets(volumes, network, [5])


def test_memory_budget_splits_the_batch_says_so_and_changes_nothing(network, volumes, caplog):
    together = make(strength=0.75).explain(volumes, network, list("abc")).image
    method = make(strength=0.75, memory_budget=100)
    assert recorded(network, lambda: method.explain(volumes, network, list("abc"))) == [4] + [12] * 3
    image = 4 * next(iter(method.measured.values()))
    method = make(strength=0.75, memory_budget=2.5 * image / 1e9)
    with caplog.at_level(logging.INFO, logger="medcf.inferers.conditional"):
        sizes = recorded(network, lambda: method.explain(volumes, network, list("abc")))
    assert sizes[0] == 4  # the measured forward of one image
    assert sizes[1:] == [8] * 3 + [4] * 3
    assert "3 images in micro-batches of 2, 1" in caplog.text
    assert recorded(network, lambda: method.explain(volumes, network, list("abc"))) == sizes[1:]  # measured once
    torch.testing.assert_close(method.explain(volumes, network, list("abc")).image, together, rtol=0, atol=1e-4)
    with caplog.at_level(logging.WARNING, logger="medcf.inferers.conditional"):
        tight = make(strength=0.75, memory_budget=1e-5).explain(volumes, network, list("abc")).image
    assert "above memory_budget" in caplog.text
    torch.testing.assert_close(tight, together, rtol=0, atol=1e-4)


def test_background_comes_back_and_black_inside_does_not(network, volumes):
    volumes[:, :, :2], volumes[:, :, 5, 5, 5] = -1, -1
    mask = background(volumes)
    assert mask[:, :, :2].all()
    assert mask.sum() == 3 * 2 * 64
    kept = make().explain(volumes, network, list("abc")).image
    free = make(keep_background=False).explain(volumes, network, list("abc")).image
    assert (kept[:, :, :2] == -1).all()
    assert (free[:, :, :2] > -1).any()
    assert torch.equal(kept[:, :, 2:], free[:, :, 2:])


class NoReadBack(TorchDispatchMode):
    """Refuses to read a tensor back, which would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "waited for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("noise", ["fresh", "shared"])
def test_the_stacked_forward_never_reads_a_tensor_back(injected, network, volumes, noise):
    scheduler = RespacedDDIMScheduler(1000, prediction_type="v_prediction")
    scheduler.set_timesteps(4)
    generators = make_generators(0, list("abc"))
    injection = AttentionInjection(network)
    with torch.no_grad():
        fixed = None if noise == "fresh" else torch.randn(volumes.shape)
        options = {"generators": generators, "noise": fixed, "injection": injection}
        denoiser = injected(network, scheduler, [0, 1, 0], 2.0, volumes, **options)
        with NoReadBack():
            denoise(denoiser, scheduler, volumes, scheduler.timesteps.tolist(), generators=generators)
    with pytest.raises(AssertionError, match="waited"), NoReadBack():
        bool(volumes.sum() > 0)


@pytest.mark.gpu
def test_the_stacked_forward_never_synchronizes_a_gpu(injected, network, volumes):
    scheduler, device = RespacedDDIMScheduler(1000, prediction_type="v_prediction"), torch.device("cuda")
    scheduler.set_timesteps(4)
    network, volumes = network.to(device), volumes.to(device)
    generators, steps = make_generators(0, list("abc"), device), scheduler.timesteps.tolist()
    try:
        with torch.no_grad():
            injection = AttentionInjection(network)
            options = {"generators": generators, "injection": injection}
            denoiser = injected(network, scheduler, [0, 1, 0], 2.0, volumes, **options)
            denoise(denoiser, scheduler, volumes, steps, generators=generators)
            torch.cuda.set_sync_debug_mode("error")
            denoise(denoiser, scheduler, volumes, steps, generators=generators)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        network.cpu()


def test_network_is_left_as_it_was_after_an_error(network, volumes):
    forwards = [module.forward for module in network.modules()]

    def fail(*_arguments):
        raise RuntimeError("out of order")

    handle = network.unet.out.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        make().explain(volumes, network)
    handle.remove()
    assert [module.forward for module in network.modules()] == forwards
    assert make().explain(volumes, network).image.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 0}, r"use 1 \(no guidance\)"),
        ({"null_class_labels": None}, "null_class_labels"),
        ({"null_class_labels": None, "guidance_scale": 1, "reference_condition": "null"}, "null_class_labels"),
        ({"injection_scale": -0.5}, "is a weight"),
        ({"reference_noise": "old"}, "'fresh', 'shared', 'start'"),
        ({"reference_condition": "other"}, "'same', 'null'"),
        ({"memory_budget": "much"}, "memory_budget"),
        ({"memory_budget": 0}, "memory_budget"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_networks_that_cannot_serve_are_refused(tiny_unet, network, volumes):
    with pytest.raises(ValueError, match="class-conditional"):
        make().explain(volumes[..., 0], tiny_unet())
    with pytest.raises(ValueError, match="outside the network's 3 classes"):
        make(null_class_labels=7).explain(volumes, network)
    with pytest.raises(ValueError, match="divisible by 2"):
        make().explain(volumes[..., :7], network)
    assert AttentionInjectionInferer.title == "ControlCG"
