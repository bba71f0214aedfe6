# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion: affine maps of Gaussian classes, the round trip, and what it says about the edit."""

from __future__ import annotations

import logging

import pytest
import torch

from medcf.inferers import create_method
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

MEANS, STD = (-0.4, 0.3, 0.0), 0.15
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()


@pytest.fixture
def network(gaussian_classes):
    """The exact denoiser of two Gaussian classes; class 2 is the null class."""
    return gaussian_classes(MEANS, STD)


@pytest.fixture
def images():
    return MEANS[0] + STD * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)


def judge(image):
    bright = image.flatten(1).mean(1) * 20
    return torch.stack([-bright, bright], dim=1)


def make(scheduler=None, **options):
    scheduler = RespacedDDIMScheduler(1000) if scheduler is None else scheduler
    defaults = {"num_inference_steps": 20, "progress": False, "guidance_scale": 1.0}
    return create_method("ddim_inversion", scheduler=scheduler, classifier=judge, target=1, **(defaults | options))


def affine(value, up, down, source, target):
    """Walk both chains for one pixel; each step is affine for Gaussian data."""

    def noise(x, a, mean):
        return (x - a**0.5 * mean) * (1 - a) ** 0.5 / (a * STD**2 + 1 - a)

    x, p = value, 1.0
    for t in up:
        a, epsilon = TABLE[t], noise(x, TABLE[t], source)
        x = a**0.5 * (x - (1 - p) ** 0.5 * epsilon) / p**0.5 + (1 - a) ** 0.5 * epsilon
        p = a
    for i, t in enumerate(reversed(down)):
        a, p = TABLE[t], TABLE[down[-i - 2]] if i < len(down) - 1 else 1.0
        epsilon = noise(x, a, target)
        x = p**0.5 * (x - (1 - a) ** 0.5 * epsilon) / a**0.5 + (1 - p) ** 0.5 * epsilon
    return x


@pytest.mark.parametrize("depth", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(("up", "down"), [(20, 20), (50, 12)])
def test_both_chains_are_the_affine_maps_of_gaussian_classes(network, images, depth, up, down):
    method = make(depth=depth, num_inversion_steps=up, num_inference_steps=down)
    kept = [round(i * 999 / (down - 1)) for i in range(down)][: round(depth * down)]
    inverted = [t for t in (round(i * 999 / (up - 1)) for i in range(up)) if t < kept[-1]] + [kept[-1]]
    result = method.explain(images, network)
    wanted = affine(images, inverted, kept, MEANS[0], MEANS[1])
    torch.testing.assert_close(result.image, wanted.clamp(-1, 1), rtol=0, atol=1e-4)
    back = affine(images, inverted, kept, MEANS[0], MEANS[0])
    error = (back.clamp(-1, 1) - images).abs().flatten(1).mean(1)
    torch.testing.assert_close(result.extras["round_trip_error"], error, rtol=0, atol=1e-4)


def kept(steps):
    return [round(i * 999 / (steps - 1)) for i in range(steps)]


def test_predicted_clean_images_are_not_clipped(network, images):
    """Their mean lies at 1.05, so that clipping them on the way would move what ends below 1."""
    result = make(guidance_scale=3.5).explain(images, network).image
    wanted = affine(images, kept(20), kept(20), MEANS[0], 3.5 * MEANS[1])
    assert 0.1 < float((wanted < 1).float().mean()) < 0.9
    torch.testing.assert_close(result, wanted.clamp(-1, 1), rtol=0, atol=1e-4)


def test_a_second_pass_inverts_what_the_first_gave(network, images):
    result = make(num_iterations=2, guidance_scale=1.5).explain(images, network)
    first = result.trajectory[:, 1]
    wanted = affine(first, kept(20), kept(20), MEANS[1], 1.5 * MEANS[1])  # the first pass has made it class 1
    torch.testing.assert_close(result.image, wanted.clamp(-1, 1), rtol=0, atol=1e-4)
    back = affine(first, kept(20), kept(20), MEANS[1], MEANS[1]).clamp(-1, 1)
    error = (back - first).abs().flatten(1).mean(1)
    torch.testing.assert_close(result.extras["round_trip_error"], error, rtol=0, atol=1e-4)


def test_the_error_leaves_out_the_background_that_is_put_back(network, images):
    images[..., :3, :] = -1
    result = make().explain(images, network)
    back = affine(images, kept(20), kept(20), MEANS[0], MEANS[0]).clamp(-1, 1)
    error = (back - images).abs()
    assert float(error[..., :3, :].mean()) > 0.005
    error[..., :3, :] = 0
    torch.testing.assert_close(result.extras["round_trip_error"], error.flatten(1).mean(1), rtol=0, atol=1e-4)
    assert (result.image[..., :3, :] == -1).all()


def test_full_inversion_with_many_steps_moves_the_image_by_the_distance_of_the_means(network, images):
    """The exact flow between two Gaussians of one variance is a shift, by w times the distance to null further."""
    for w in (0.0, 0.5):
        shift = MEANS[1] + w * (MEANS[1] - MEANS[2]) - MEANS[0]
        error = []
        for steps in (50, 200):
            result = make(num_inference_steps=steps, guidance_scale=1 + w).explain(images, network)
            error.append(float((result.image - (images + shift).clamp(-1, 1)).abs().max()))
        assert error[1] < error[0] / 2
        assert error[1] < 0.03


def test_round_trip_error_falls_with_steps_and_with_iterations(network, images):
    def error(**options):
        return float(make(**options).explain(images, network).extras["round_trip_error"].mean())

    errors = [error(num_inference_steps=steps) for steps in (10, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert error(num_inference_steps=40, inversion_iterations=8) < errors[1] / 20


def test_no_noise_is_drawn_whatever_the_scheduler(network, images):
    results = [
        make(scheduler, seed=seed).explain(images, network, ids).image
        for scheduler, seed, ids in (
            (RespacedDDIMScheduler(1000), 0, list("abc")),
            (RespacedDDIMScheduler(1000, eta=1.0), 1, list("xyz")),
            (RespacedDDPMScheduler(1000), 2, None),
        )
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_error_is_logged_before_the_edit_and_an_edit_below_it_is_warned_of(network, images, caplog):
    events = []
    network.register_forward_hook(lambda *_: events.append(len(caplog.records)))
    options = {"num_inference_steps": 6, "guidance_scale": 3.0}
    with caplog.at_level(logging.INFO, logger="medcf.inferers.ddim_inversion"):
        make(**options).explain(images, network, ["one", "two", "three"])
    assert events == [0] * 12 + [1] * 6  # up and back, then the figures, then the edit
    assert caplog.records[0].message.startswith("Round-trip error before the edit: one 0.")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("budget", [None, 1e-9])
def test_small_edit_is_warned_of(network, images, caplog, budget):
    network.classes[1].mean = MEANS[0]  # the same class by another name: all that changes is the error
    network.classes[1].std = 1.0001 * STD
    with caplog.at_level(logging.WARNING, logger="medcf.inferers.ddim_inversion"):
        result = make(num_inference_steps=6, memory_budget=budget).explain(images, network, ["one", "two", "three"])
    exceeds = result.extras["round_trip_error"] > result.difference.abs().flatten(1).mean(1)
    assert exceeds.any()
    said = " ".join(one.message for one in caplog.records if one.name == "medcf.inferers.ddim_inversion")
    assert [f"{name} 0." in said for name in ("one", "two", "three")] == exceeds.tolist()


def test_forwards_are_counted_with_and_without_the_round_trip(network, images):
    assert make().explain(images, network).num_function_evaluations.tolist() == [60] * 3
    result = make(measure_round_trip=False).explain(images, network)
    assert result.num_function_evaluations.tolist() == [40] * 3
    assert result.extras == {}
    torch.testing.assert_close(result.image, make().explain(images, network).image, rtol=0, atol=0)


def test_source_is_the_predicted_class_or_none(network, images):
    seen = []
    network.register_forward_hook(lambda _m, args, kwargs, _o: seen.append(kwargs["class_labels"]), with_kwargs=True)
    both = torch.cat([images[:1], -images[:1]])
    make().explain(both, network, target="opposite")
    assert seen[0].tolist() == seen[20].tolist() == [0, 1]
    assert seen[-1].tolist() == [1, 0]
    seen.clear()
    make(source_condition="null").explain(both, network, target="opposite")
    assert seen[0].tolist() == [2, 2]


def test_memory_budget_changes_nothing(network, images):
    together = make(guidance_scale=2.0).explain(images, network)
    split = make(guidance_scale=2.0, memory_budget=1e-9).explain(images, network)
    torch.testing.assert_close(split.image, together.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(split.extras["round_trip_error"], together.extras["round_trip_error"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 1.5}, "depth=1.5"),
        ({"depth": 0.001}, "0 of 20 kept steps"),
        ({"inversion_iterations": 0}, "inversion_iterations"),
        ({"source_condition": "target"}, "'predicted', 'null'"),
        ({"source_condition": "null", "null_class_labels": None}, "null_class_labels"),
        ({"strength": 0.5}, "strength"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
