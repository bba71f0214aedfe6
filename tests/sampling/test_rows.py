# SPDX-License-Identifier: Apache-2.0
"""The stacked denoiser: what it hands to the network, and what it makes of the network's output."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medcf.sampling.rows import InjectedDenoiser, plan_rows
from medcf.schedulers import RespacedDDPMScheduler

W = 2.0


class Told:
    """Gives a prepared output, and keeps the stack that it was called with."""

    num_class_embeds = 3

    def __init__(self, output=None):
        self.output = output

    def __call__(self, sample, timesteps, class_labels):
        self.sample, self.timesteps, self.labels = sample, timesteps, class_labels
        return sample if self.output is None else self.output


def make(network, images, scales=(1 + W, 1.0), reference=None):
    rows = plan_rows([0, 1], [0, 1], [scale != 1 for scale in scales], null_class_labels=2, reference=reference)
    injection = SimpleNamespace(reference=None) if reference else None
    noise = torch.zeros_like(images)
    scheduler = RespacedDDPMScheduler(1000)
    return InjectedDenoiser(network, scheduler, rows, scales, images, noise=noise, injection=injection)


@pytest.fixture
def images():
    return torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))


def outputs(rows, channels, dtype=torch.float32):
    return torch.randn(rows, channels, 4, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_a_learned_variance_is_that_of_the_condition(images):
    output = outputs(3, 2)  # edit 0, edit 1, the null row of edit 0
    prediction = make(Told(output), images)(images, 500)
    torch.testing.assert_close(prediction.variance, output[:2, 1:])
    torch.testing.assert_close(prediction.noise[0], (1 + W) * output[0, :1] - W * output[2, :1])
    assert torch.equal(prediction.noise[1], output[1, :1])


def test_outputs_in_16_bits_are_combined_in_32(images):
    output = outputs(3, 1, torch.bfloat16)
    prediction = make(Told(output), images)(images, 500)
    assert prediction.noise.dtype == torch.float32
    wanted = (1 + W) * output[0].float() - W * output[2].float()
    torch.testing.assert_close(prediction.noise[0], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_stack_has_the_memory_layout_of_the_sample(images, layout):
    wide = images.repeat(1, 2, 1, 1, 1).contiguous(memory_format=layout)
    network = Told()
    make(network, wide, reference="same")(wide, 500)
    assert network.sample.shape == (6, 2, 4, 6, 8)
    assert network.sample.is_contiguous(memory_format=layout)


def test_rows_show_the_samples_and_the_inputs_at_their_level(images):
    network, scheduler = Told(), RespacedDDPMScheduler(1000)
    make(network, images, reference="same")(images + 1, 300)
    a = scheduler.alpha_bar(300)
    y = a**0.5 * images
    wanted = torch.stack([images[0] + 1, images[1] + 1, images[0] + 1, y[0], y[1], y[0]])
    torch.testing.assert_close(network.sample, wanted)
    assert network.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert network.timesteps.tolist() == [300] * 6
