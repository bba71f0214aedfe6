# SPDX-License-Identifier: Apache-2.0
"""One stacked call: what it hands to the network, what it makes of the output, and how several factors are guided."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from medcf.networks import Condition, Conditioner, Denoiser, References
from medcf.networks.stack import plan_stack
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
    scheduler = RespacedDDPMScheduler(1000)
    factor = Condition(torch.tensor([0, 1]), null=Condition(2), scale=scales)

    def at(t):
        return scheduler.alpha_bar(t) ** 0.5 * images

    return Denoiser(network, scheduler, factor, References(at, [0, 1], nullcontext(), reference) if reference else None)


@pytest.fixture
def images():
    return torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))


def outputs(rows, channels, dtype=torch.float32):
    return torch.randn(rows, channels, 4, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_a_learned_variance_is_that_of_the_condition(images):
    output = outputs(3, 2)  # sample 0, sample 1, the null row of sample 0
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
    y = scheduler.alpha_bar(300) ** 0.5 * images
    wanted = torch.stack([images[0] + 1, images[1] + 1, images[0] + 1, y[0], y[1], y[0]])
    torch.testing.assert_close(network.sample, wanted)
    assert network.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert network.timesteps.tolist() == [300] * 6


class TwoFactors(torch.nn.Module):
    """The noise is a function of class and prompt that no sum of one of each gives."""

    def forward(self, sample, timesteps, context=None, class_labels=None):
        prompt = context.sum((1, 2)).reshape(-1, 1, 1, 1)
        label = class_labels.reshape(-1, 1, 1, 1).float()
        return 0.1 * sample + label * (1 + prompt) + prompt**2


def noise(conditions, sample):
    return Denoiser(TwoFactors(), RespacedDDPMScheduler(1000), conditions)(sample, 500).noise


def expected(sample, label, prompt):
    return 0.1 * sample + label * (1 + prompt) + prompt**2


@pytest.fixture
def pictures():
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def prompt_of(value, scale=1.0):
    context = torch.full((1, 1, 1), value)
    return Condition(context=context, null=Condition(context=torch.full((1, 1, 1), 0.5)), scale=scale)


def class_of(value, scale=1.0):
    return Condition(value, null=Condition(3), scale=scale)


def test_one_factor_is_guided_while_another_is_held(pictures):
    found = noise([prompt_of(2.0), class_of(1, 3.0)], pictures)
    null, both = expected(pictures, 3, 2.0), expected(pictures, 1, 2.0)  # the prompt stays in both rows
    torch.testing.assert_close(found, null + 3 * (both - null), rtol=0, atol=1e-5)
    assert len(plan_stack([prompt_of(2.0), class_of(1, 3.0)], 2)) == 4


def test_two_factors_with_a_scale_each_telescope(pictures):
    found = noise([prompt_of(2.0, 1.5), class_of(1, 3.0)], pictures)
    none, first, both = (expected(pictures, *one) for one in ((3, 0.5), (3, 2.0), (1, 2.0)))
    torch.testing.assert_close(found, none + 1.5 * (first - none) + 3 * (both - first), rtol=0, atol=1e-5)


def test_factors_with_the_same_scale_are_guided_together_in_two_rows(pictures):
    together = Condition(1, torch.full((1, 1, 1), 2.0), Condition(3, torch.full((1, 1, 1), 0.5)), 3.0)
    apart = [prompt_of(2.0, 3.0), class_of(1, 3.0)]
    torch.testing.assert_close(noise(apart, pictures), noise(together, pictures), rtol=0, atol=1e-5)
    assert len(plan_stack(apart, 2)) == len(plan_stack([together], 2)) == 4


def test_each_sample_has_its_own_class_prompt_and_scale(pictures):
    contexts = torch.tensor([2.0, -1.0]).reshape(2, 1, 1)
    condition = Condition(torch.tensor([0, 1]), contexts, Condition(3, torch.full((1, 1, 1), 0.5)), [1.0, 4.0])
    found = noise(condition, pictures)
    torch.testing.assert_close(found[0], expected(pictures[0], 0, 2.0), rtol=0, atol=1e-5)
    null, both = expected(pictures[1], 3, 0.5), expected(pictures[1], 1, -1.0)
    torch.testing.assert_close(found[1], null + 4 * (both - null), rtol=0, atol=1e-5)
    assert len(plan_stack([condition], 2)) == 3
    swapped = noise(condition.rows(torch.tensor([1, 0])), pictures.flip(0))
    torch.testing.assert_close(swapped.flip(0), found, rtol=0, atol=1e-5)


def test_prompts_of_classes_are_chosen_and_the_held_one_stays(pictures):
    contexts = torch.tensor([2.0, -1.0]).reshape(2, 1, 1)
    held = Condition(context=torch.full((1, 1, 1), 0.25))
    conditioner = Conditioner(3, contexts, torch.full((1, 1, 1), 0.5), held=[held])
    found = noise(conditioner(torch.tensor([1, 0]), 2.0), pictures)
    for image, result, label, prompt in zip(pictures, found, (1, 0), (-1.0, 2.0), strict=True):
        null, both = expected(image, 3, 0.75), expected(image, label, prompt + 0.25)
        torch.testing.assert_close(result, null + 2 * (both - null), rtol=0, atol=1e-5)
    free = noise(conditioner.unconditional(), pictures)
    torch.testing.assert_close(free, expected(pictures, 3, 0.75), rtol=0, atol=1e-5)


def test_samples_of_one_input_share_the_null_reference():
    factor = Condition(torch.tensor([0, 1]), null=Condition(2), scale=3.0)
    stack = plan_stack([factor], 2, sources=[0, 0], reference="null")
    assert stack.reference == [4, 4, 4, 4, 4]
    assert stack.cost == [3, 2]


def test_a_held_prompt_of_each_image_stays_with_it(pictures):
    held = Condition(context=torch.tensor([0.25, 0.75]).reshape(2, 1, 1))
    conditioner = Conditioner(3, torch.tensor([2.0, -1.0]).reshape(2, 1, 1), torch.full((1, 1, 1), 0.5), held=[held])
    found = noise(conditioner(torch.tensor([1]), 1.0, torch.tensor([1])), pictures[1:])
    torch.testing.assert_close(found, expected(pictures[1:], 1, -1.0 + 0.75), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="held has labels"):
        Conditioner(3, held=[Condition(labels=1)])
