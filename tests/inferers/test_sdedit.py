# SPDX-License-Identifier: Apache-2.0
"""SDEdit on two Gaussian classes, whose conditional and unconditional denoisers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from medcf.inferers import create_method
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()
MEANS, STD = (-0.5, 0.4), 0.15


def class_noise(x, a, label):
    """The noise in x if x0 ~ N(m, s^2) of the class; the mixture of both classes for label 2. NumPy or torch."""
    spread = a * STD**2 + 1 - a
    parts = [(x - a**0.5 * m) * (1 - a) ** 0.5 / spread for m in MEANS]
    if label != 2:
        return parts[label]
    odds = a**0.5 * (MEANS[1] - MEANS[0]) * (x - a**0.5 * sum(MEANS) / 2) / spread
    weight = 1 / (1 + np.exp(-odds)) if isinstance(x, np.ndarray) else torch.sigmoid(odds)
    return (1 - weight) * parts[0] + weight * parts[1]


class Mixture(nn.Module):
    """The exact class-conditional denoiser of independent pixels; class 2 is the null class."""

    num_class_embeds = 3

    def forward(self, sample, timesteps, class_labels):
        a = TABLE[int(timesteps[0])]
        return torch.stack([class_noise(x, a, int(y)) for x, y in zip(sample, class_labels, strict=True)])


def judge(image):
    bright = image.flatten(1).mean(1) * 20
    return torch.stack([-bright, bright], dim=1)


def make(scheduler=None, **options):
    scheduler = RespacedDDPMScheduler(1000) if scheduler is None else scheduler
    defaults = {"target": 1, "null_class_labels": 2, "num_inference_steps": 20, "strength": 0.5, "progress": False}
    return create_method("sdedit", scheduler=scheduler, classifier=judge, **(defaults | options))


def distribution(value, scale, steps=20, count=10):
    """Probabilities on a grid of what becomes of one pixel: the chain's own kernel, applied to the density."""
    kept = [round(i * 999 / (steps - 1)) for i in range(steps)]
    x = np.linspace(-6, 6, 2401)
    a = TABLE[kept[count - 1]]
    density = np.exp(-0.5 * (x - a**0.5 * value) ** 2 / (1 - a))
    density /= density.sum()
    for i in reversed(range(count)):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        null = class_noise(x, a, 2)
        epsilon = null + scale * (class_noise(x, a, 1) - null)
        clean = (x - (1 - a) ** 0.5 * epsilon) / a**0.5
        mean = p**0.5 * (1 - a / p) / (1 - a) * clean + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        if not i:
            return mean, density
        variance = (1 - a / p) * (1 - p) / (1 - a)
        kernel = np.exp(-0.5 * (x[None] - mean[:, None]) ** 2 / variance)
        density = density @ (kernel / kernel.sum(1, keepdims=True))
    raise AssertionError


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pixels_have_the_distribution_of_the_exact_chain(scale):
    method = make(guidance_scale=scale, clip_denoised=False)
    image = torch.full((2, 1, 200, 200), -0.5)
    pixels = np.sort(method.explain(image, Mixture(), ["a", "b"]).image.double().flatten().numpy())
    values, weights = distribution(-0.5, scale)
    order = np.argsort(values)
    cumulated = np.interp(pixels, values[order], np.cumsum(weights[order]) - weights[order] / 2)
    distance = np.abs(cumulated - (np.arange(len(pixels)) + 0.5) / len(pixels)).max()
    assert distance < 2.0 / math.sqrt(len(pixels))  # Kolmogorov-Smirnov, p of about 0.0007


def test_conditional_chain_has_the_mean_and_variance_of_its_recursion():
    """Without guidance every step is affine: M' = c0 (m + K (M - sqrt(A) m)) + c1 M."""
    method = make(RespacedDDIMScheduler(1000, eta=0.0), guidance_scale=1.0, clip_denoised=False, null_class_labels=None)
    pixels = method.explain(torch.full((1, 1, 300, 300), -0.5), Mixture(), ["a"]).image
    kept = [round(i * 999 / 19) for i in range(20)]
    m, v = -0.5 * TABLE[kept[9]] ** 0.5, 1 - TABLE[kept[9]]
    for i in reversed(range(10)):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        k, c1 = a**0.5 * STD**2 / (a * STD**2 + 1 - a), ((1 - p) / (1 - a)) ** 0.5
        c0 = p**0.5 - c1 * a**0.5
        m = c0 * (MEANS[1] + k * (m - a**0.5 * MEANS[1])) + c1 * m
        v = (c0 * k + c1) ** 2 * v
    assert float(pixels.mean()) == pytest.approx(m, abs=4 * (v / pixels.numel()) ** 0.5)
    assert float(pixels.var()) == pytest.approx(v, rel=4 * (2 / pixels.numel()) ** 0.5)


def test_more_guidance_and_more_noise_move_the_image_further():
    image = torch.full((1, 1, 16, 16), -0.5)
    by_scale = [make(guidance_scale=s).explain(image, Mixture(), ["a"]).confidences[0, 1] for s in (1, 2, 4)]
    by_strength = [make(strength=s).explain(image, Mixture(), ["a"]).confidences[0, 1] for s in (0.1, 0.3, 0.6)]
    assert sorted(by_scale) == by_scale
    assert sorted(by_strength) == by_strength


def test_guidance_costs_two_forwards_a_step_and_the_conditional_network_one():
    image = torch.full((2, 1, 8, 8), -0.5)
    assert make().explain(image, Mixture()).num_function_evaluations.tolist() == [20, 20]
    assert make(guidance_scale=1).explain(image, Mixture()).num_function_evaluations.tolist() == [10, 10]


def test_each_image_goes_to_its_own_target():
    image = torch.cat([torch.full((1, 1, 8, 8), 0.4), torch.full((1, 1, 8, 8), -0.5)])
    result = make().explain(image, Mixture(), target=[0, 1])
    assert result.flipped.tolist() == [True, True]
    assert result.image.mean(dim=(1, 2, 3)).sign().tolist() == [-1, 1]


def test_classifier_is_not_differentiated_and_inference_mode_is_fine():
    image = torch.full((2, 1, 8, 8), -0.5)
    wanted = make().explain(image, Mixture()).image
    with torch.inference_mode():
        assert torch.equal(make().explain(image, Mixture()).image, wanted)


@pytest.mark.parametrize("known_noise", ["fresh", "shared"])
@pytest.mark.parametrize("as_function", [False, True])
def test_pixels_outside_the_region_stay_bit_equal(known_noise, as_function):
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.6
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., :4] = True
    method = make(region=(lambda x: region.expand(len(x), -1, -1, -1)) if as_function else region)
    result = method.explain(image, Mixture())
    assert torch.equal(result.image[..., 4:], image[..., 4:])
    assert (result.image[..., :4] - image[..., :4]).abs().mean() > 0.3
    with pytest.raises(ValueError, match="region"):
        make(region=torch.ones(3, 1, 8, 8)).explain(image, Mixture())


def test_every_image_has_a_region_of_its_own_also_when_others_do_not_run():
    image = torch.full((3, 1, 8, 8), -0.6)
    image[0] = 0.9  # of the target class already
    region = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    region[0, ..., :2], region[1, ..., 2:5], region[2, ..., 5:] = True, True, True
    result = make(region=region).explain(image, Mixture())
    assert result.unchanged.tolist() == [True, False, False]
    assert not (result.image != image)[0].any()
    assert torch.equal((result.image != image)[1:], region[1:])


def test_networks_and_options_without_classes_are_refused(tiny_unet):
    image = torch.full((1, 1, 8, 8), -0.5)
    with pytest.raises(ValueError, match="class-conditional"):
        make().explain(image, tiny_unet())
    with pytest.raises(ValueError, match="null_class_labels"):
        make(null_class_labels=None)
    with pytest.raises(ValueError, match="strength"):
        make(strength=0)
