# SPDX-License-Identifier: Apache-2.0
"""Classifier guidance against exact answers: of a mixture of two Gaussian classes everything is known."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder

from medcf.guidance import NoisyClassifierGradient
from medcf.schedulers import create_scheduler
from medcf.synthesis import Sampler
from medcf.training.prepare_batch import NoisyLabelPrepareBatch

MEANS, STD = torch.tensor([-0.4, 0.4]), 0.2


class Mixture(torch.nn.Module):
    """The exact denoiser of images of one pixel that are of either class, and the exact classifier of noisy ones."""

    def __init__(self, scheduler):
        super().__init__()
        self.a = scheduler.alphas_cumprod
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def logits(self, sample, timesteps):
        a = self.a[timesteps].view(-1, 1)
        variance = a * STD**2 + 1 - a
        return -((sample.flatten(1) - a.sqrt() * MEANS) ** 2) / (2 * variance)

    def forward(self, sample, timesteps, class_labels=None):
        a = self.a[timesteps].view(-1, 1)
        variance = a * STD**2 + 1 - a
        share = self.logits(sample, timesteps).softmax(1)
        score = ((share * MEANS).sum(1, keepdim=True) * a.sqrt() - sample.flatten(1)) / variance
        return (-(1 - a).sqrt() * score).view_as(sample)


def draw(solver, scale, label=1, count=600, steps=60, **options):
    scheduler = create_scheduler(solver, prediction_type="epsilon")
    exact = Mixture(scheduler)
    options = {"guide": exact.logits, "classifier_scale": scale, **options}
    sampler = Sampler(
        exact,
        scheduler,
        (1, 1, 1),
        num_classes=2,
        guidance_scale=1.0,
        num_inference_steps=steps,
        batch_size=count,
        **options,
    )
    return torch.stack([sample.image for sample in sampler(label, count)]).flatten()


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 500), ("ddim", 60), ("dpmpp", 60), ("euler", 60)])
@pytest.mark.parametrize("label", [0, 1])
def test_with_scale_1_an_unconditional_model_s_samples_are_those_of_the_class(solver, steps, label):
    images = draw(solver, 1.0, label, steps=steps)
    assert float(images.mean()) == pytest.approx(float(MEANS[label]), abs=0.04)
    assert float(images.std()) == pytest.approx(STD, rel=0.15)


def test_without_a_scale_both_classes_are_drawn_and_with_a_large_one_the_far_side_of_one():
    both = draw("ddim", 0.0)
    assert 0.4 < float((both > 0).float().mean()) < 0.6
    torch.testing.assert_close(both, draw("ddim", 0.0, guide=None))
    assert float((draw("ddim", 1.0) > 0).float().mean()) > 0.95
    assert float(draw("ddim", 4.0).mean()) > float(draw("ddim", 1.0).mean()) + 0.03


def test_the_gradient_is_that_of_the_log_probability():
    scheduler = create_scheduler("ddpm", prediction_type="epsilon")
    scheduler.set_timesteps(10)
    exact = Mixture(scheduler)
    sample = torch.linspace(-1, 1, 7).view(7, 1, 1, 1)
    t = int(scheduler.timesteps_from(1.0)[3])
    times = torch.full((7,), t)
    step = scheduler.posterior(scheduler.convert(exact(sample, times), t, sample), t, sample)
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    moved = NoisyClassifierGradient(exact.logits, labels, 2.0).on_step(step)
    a = scheduler.alphas_cumprod[t]
    variance = a * STD**2 + 1 - a
    share = exact.logits(sample, times).softmax(1)
    slope = a.sqrt() * (MEANS[labels] - (share * MEANS).sum(1)) / variance
    torch.testing.assert_close((moved.mean - step.mean).flatten(), (2 * step.gain * slope).flatten())


def test_the_classifier_is_trained_on_images_at_their_noise_level():
    scheduler = create_scheduler("ddpm", prediction_type="v_prediction")
    torch.manual_seed(0)
    batch = {"image": torch.full((400, 1, 4, 4), 0.5), "label": torch.arange(400) % 3}
    noisy, labels, args, given = NoisyLabelPrepareBatch(scheduler)(batch)
    assert args == ()
    assert torch.equal(labels, batch["label"])
    a = scheduler.alphas_cumprod[given["timesteps"]].view(-1, 1, 1, 1)
    noise = (noisy - a.sqrt() * 0.5) / (1 - a).sqrt()
    assert float(noise.mean()) == pytest.approx(0, abs=4 / math.sqrt(6400))
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    half = DiffusionModelEncoder(2, 1, 3, (4, 4), 1, (8, 8), (False, False), norm_num_groups=8, num_head_channels=8)
    assert half(noisy[:2], **{key: value[:2] for key, value in given.items()}).shape == (2, 3)


def test_what_cannot_be_guided_is_refused():
    with pytest.raises(ValueError, match=r"classifier_scale=-1: use 0 or more"):
        draw("ddim", -1.0, count=1, steps=2)
    scheduler = create_scheduler("ddim", prediction_type="epsilon")
    exact = Mixture(scheduler)

    class Latents:
        range, networks = None, ()

    with pytest.raises(ValueError, match="sees noisy pixels, and this network works in latents"):
        Sampler(exact, scheduler, (1, 1, 1), num_classes=2, guidance_scale=1.0, guide=exact.logits, space=Latents())
    exact.text_encoder = None
    by_prompt = Sampler(exact, scheduler, (1, 1, 1), class_prompts=["a"], guidance_scale=1.0, guide=exact.logits)
    with pytest.raises(ValueError, match="knows classes, no prompts"):
        by_prompt._hooks([by_prompt.request("a head")], torch.device("cpu"))
