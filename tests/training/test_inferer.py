# SPDX-License-Identifier: Apache-2.0
"""The forward pass of a diffusion training."""

from __future__ import annotations

import pytest
import torch

from medcf.schedulers import RespacedDDPMScheduler
from medcf.training.inferer import AutocastInferer, DiffusionTrainingInferer


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x, timesteps, context=None, class_labels=None):
        self.seen = (x, timesteps, context, class_labels)
        self.output = self.layer(x)
        return self.output


@pytest.fixture
def call():
    torch.manual_seed(0)
    noise, image = torch.randn(2, 3, 1, 4, 4)
    return image, noise, torch.tensor([0, 500, 999])


def test_the_network_sees_the_image_noised_by_the_closed_form(call):
    image, noise, timesteps = call
    network = Recorder()
    labels = torch.tensor([0, 1, 2])
    DiffusionTrainingInferer(RespacedDDPMScheduler(1000))(
        image, network, noise=noise, timesteps=timesteps, class_labels=labels
    )
    alpha = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0)[timesteps].reshape(3, 1, 1, 1)
    expected = alpha.sqrt() * image + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(network.seen[0], expected.float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(network.seen[3], labels)


def test_mixed_precision_computes_in_bfloat16_and_returns_float32(call):
    image, noise, timesteps = call
    network = Recorder()
    scheduler = RespacedDDPMScheduler(1000)
    full = DiffusionTrainingInferer(scheduler)(image, network, noise=noise, timesteps=timesteps)
    assert network.output.dtype == torch.float32
    mixed = DiffusionTrainingInferer(scheduler, "bfloat16")(image, network, noise=noise, timesteps=timesteps)
    assert network.output.dtype == torch.bfloat16
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("amp_dtype", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, torch.float32)]
)
def test_the_inferer_computes_in_the_precision_asked_for(amp_dtype, expected):
    linear = torch.nn.Linear(3, 2)
    assert AutocastInferer(amp_dtype)(torch.ones(1, 3), linear).dtype == expected


def test_the_inferer_refuses_words_that_are_no_precision():
    with pytest.raises(ValueError, match="amp_dtype='null' is unknown: use one of 'bfloat16', 'float32'"):
        AutocastInferer("null")
