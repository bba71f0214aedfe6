# SPDX-License-Identifier: Apache-2.0
"""Denoiser: one meaning for every parameterization, conditions and classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from medcf.networks import Condition, Denoiser
from medcf.schedulers import RespacedDDPMScheduler


class Recorder(torch.nn.Module):
    """Counts and keeps the calls of a network."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.network(*args, **kwargs)


def make_scheduler(prediction_type="epsilon", **kwargs):
    return RespacedDDPMScheduler(1000, prediction_type=prediction_type, **kwargs)


@pytest.fixture
def sample():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_every_parameterization_means_the_same(gaussian_network, sample, prediction_type):
    network = gaussian_network(0.3, 0.2, prediction_type)
    prediction = Denoiser(network, make_scheduler(prediction_type))(sample.double(), 400)
    a = network.table[400]
    clean = 0.3 + a**0.5 * 0.04 / (a * 0.04 + 1 - a) * (sample.double() - a**0.5 * 0.3)
    noise = (sample - a**0.5 * clean) / (1 - a) ** 0.5
    torch.testing.assert_close(prediction.original, clean, rtol=0, atol=1e-6)
    torch.testing.assert_close(prediction.noise, noise, rtol=0, atol=1e-6)
    torch.testing.assert_close(prediction.velocity, a**0.5 * noise - (1 - a) ** 0.5 * clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_guidance_combines_condition_and_null(tiny_unet, sample, scale, prediction_type):
    unet, scheduler = tiny_unet(num_class_embeds=3), make_scheduler(prediction_type)
    with torch.no_grad():
        guided = Denoiser(unet, scheduler, Condition(1, null=Condition(2), scale=scale))(sample, 300)
        conditional = Denoiser(unet, scheduler, Condition(1))(sample, 300)
        null = Denoiser(unet, scheduler, Condition(2))(sample, 300)
    assert (conditional.noise - null.noise).abs().max() > 1e-3  # the label matters
    for name in ("noise", "original", "velocity"):
        wanted = (1 - scale) * getattr(null, name) + scale * getattr(conditional, name)
        torch.testing.assert_close(getattr(guided, name), wanted, rtol=1e-4, atol=1e-4)


def test_guidance_takes_one_stacked_forward(tiny_unet, sample):
    network = Recorder(tiny_unet(num_class_embeds=3))
    network.num_class_embeds = 3
    labels = torch.tensor([0, 1, 0])
    denoiser = Denoiser(network, make_scheduler(), Condition(labels, null=Condition(2), scale=2))
    denoiser(sample, 10)
    ((args, kwargs),) = network.calls
    assert args[0].shape[0] == 6
    assert kwargs["class_labels"].tolist() == [0, 1, 0, 2, 2, 2]
    assert kwargs["timesteps"].tolist() == [10] * 6
    assert denoiser.num_function_evaluations.tolist() == [2, 2, 2]


def test_guidance_keeps_the_learned_variance_of_the_condition(sample):
    def network(x, timesteps, class_labels):
        return torch.cat([x, x + 1], dim=1) * (1 + class_labels[:, None, None, None])

    scheduler = make_scheduler(variance_type="learned_range")
    denoiser = Denoiser(network, scheduler, Condition(1, null=Condition(0), scale=3))
    prediction = denoiser(sample, 10)
    torch.testing.assert_close(prediction.noise, sample + 3 * (2 * sample - sample))
    torch.testing.assert_close(prediction.variance, 2 * (sample + 1))


def test_context_and_its_null_reach_the_network(tiny_unet, sample):
    unet, scheduler = tiny_unet(with_conditioning=True, cross_attention_dim=4), make_scheduler()
    context, null = torch.randn(3, 2, 4), torch.zeros(1, 2, 4)
    with torch.no_grad():
        condition = Condition(context=context, null=Condition(context=null), scale=2)
        guided = Denoiser(unet, scheduler, condition)(sample, 300).noise
        steps = torch.full((3,), 300)
        with_context = unet(sample, timesteps=steps, context=context)
        without = unet(sample, timesteps=steps, context=null.expand(3, 2, 4))
    assert (with_context - without).abs().max() > 1e-3
    torch.testing.assert_close(guided, without + 2 * (with_context - without), rtol=1e-4, atol=1e-5)


def test_unconditional_network_gets_no_condition_arguments(sample):
    def network(x, timesteps):
        return x * 0.5

    denoiser = Denoiser(network, make_scheduler())
    torch.testing.assert_close(denoiser(sample, 5).noise, sample * 0.5)
    assert denoiser.num_function_evaluations.tolist() == [1, 1, 1]


def test_autocast_output_is_converted_in_float32(tiny_unet, sample):
    denoiser = Denoiser(tiny_unet(), make_scheduler())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = denoiser(sample, 500)
    with torch.no_grad():
        exact = denoiser(sample, 500)
    assert prediction.original.dtype == torch.float32
    a = denoiser.scheduler.alpha_bar(500)
    # the conversion itself must not round: noise and clean image make up the sample to float32 accuracy
    again = a**0.5 * prediction.original + (1 - a) ** 0.5 * prediction.noise
    torch.testing.assert_close(again, sample, rtol=0, atol=1e-5)
    torch.testing.assert_close(prediction.noise, exact.noise, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (lambda: Condition(1, scale=2), "null.labels"),
        (lambda: Condition(3), "0 to 2"),
        (lambda: Condition(torch.tensor([0, -1])), "0 to 2"),
        (lambda: Condition(1, null=Condition(7), scale=2), "null.labels=7"),
        (lambda: Condition(0.5), "class index"),
        (lambda: (), "num_class_embeds=3"),
        (lambda: Condition(scale=2), "needs a condition"),
        (lambda: Condition(context=torch.zeros(1, 2, 4), scale=2), "null.context"),
    ],
)
def test_wrong_conditions_are_refused(tiny_unet, condition, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(tiny_unet(num_class_embeds=3), make_scheduler(), condition())


def test_wrong_number_of_labels_is_refused(tiny_unet, sample):
    denoiser = Denoiser(tiny_unet(num_class_embeds=3), make_scheduler(), Condition(torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="2 indices for a batch of 3"):
        denoiser(sample, 5)
