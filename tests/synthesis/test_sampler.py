# SPDX-License-Identifier: Apache-2.0
"""Images from noise, where the answer is known: Gaussian classes have a closed-form denoiser."""

from __future__ import annotations

import pytest
import torch

from medcf.schedulers import create_scheduler
from medcf.synthesis import Request, Sampler, spread_requests
from tests.inferers.conftest import GaussianClasses

STD = 0.1


@pytest.fixture
def sampler(gaussian_network):
    """Build a sampler of two Gaussian classes and the null class, whose pixels are N(0.3), N(-0.2) and N(0)."""

    def build(solver="unipc", **options):
        network = GaussianClasses(gaussian_network(mean, STD) for mean in (0.3, -0.2, 0.0))
        options = {"num_classes": 2, "null_class_labels": 2, "num_inference_steps": 250, **options}
        scheduler = create_scheduler(solver, prediction_type="epsilon")
        return Sampler(network, scheduler, (1, 12, 12), **options)

    return build


@pytest.mark.parametrize("solver", ["unipc", "euler", "dpmpp", "ddim"])
def test_samples_of_a_class_have_its_distribution(sampler, solver):
    made = sampler(solver, guidance_scale=1.0)
    for label, mean in ((0, 0.3), (1, -0.2)):
        images = torch.stack([sample.image for sample in made(label, 24)])
        assert images.mean() == pytest.approx(mean, abs=0.01)
        assert images.std() == pytest.approx(STD, rel=0.1)


def test_guidance_moves_the_mean_away_from_the_null_by_its_scale(sampler):
    images = torch.stack([sample.image for sample in sampler(guidance_scale=2.5)(0, 24)])
    assert images.mean() == pytest.approx(2.5 * 0.3, abs=0.01)
    assert images.std() == pytest.approx(STD, rel=0.1)


def test_an_image_depends_on_its_index_and_the_seed_alone(sampler):
    made = sampler(batch_size=5)
    together = [sample.image for sample in made(0, 12)]
    later = [sample.image for sample in made(0, 3, start=9)]
    torch.testing.assert_close(torch.stack(together[9:]), torch.stack(later), rtol=0, atol=1e-5)
    mixed = made.draw([Request(1), Request(0), Request(0)], [3, 10, 7])
    torch.testing.assert_close(mixed[1], together[10], rtol=0, atol=1e-5)
    other = next(iter(sampler(seed=1)(0, 1))).image
    assert (other - together[0]).abs().mean() > STD / 2
    assert len({round(float(image.mean()), 6) for image in together}) == 12


def test_requests_take_turns_so_that_any_part_holds_every_class(sampler):
    made = sampler()
    labels = [request.label for request in spread_requests(made, [0, 1], [2, 4])]
    assert labels == [0, 1, 0, 1, 1, 1]


class Words(torch.nn.Module):
    """A text encoder whose only feature is the length of the prompt."""

    def embed(self, prompts):
        return torch.tensor([[[float(len(prompt))]] for prompt in prompts])


class PromptGaussian(torch.nn.Module):
    """The exact denoiser of pixels whose mean is a hundredth of the prompt's length."""

    def __init__(self, gaussian):
        super().__init__()
        self.text_encoder, self.gaussian = Words(), gaussian

    def forward(self, sample, timesteps, context):
        rows = zip(sample, context[:, 0, 0].tolist(), strict=True)
        return torch.cat([self.gaussian(length / 100, STD)(image[None], timesteps) for image, length in rows])


def test_prompts_of_a_class_take_turns_and_a_prompt_of_ones_own_is_followed(gaussian_network):
    network = PromptGaussian(gaussian_network)
    options = {"class_prompts": [["a" * 10, "a" * 50], "b" * 30], "guidance_scale": 1.0, "num_inference_steps": 40}
    made = Sampler(network, create_scheduler("unipc", prediction_type="epsilon"), (1, 12, 12), **options)
    assert [sample.request.prompt for sample in made(0, 4)] == ["a" * 10, "a" * 50] * 2
    means = [float(sample.image.mean()) for sample in made(0, 4)]
    assert means == pytest.approx([0.1, 0.5, 0.1, 0.5], abs=0.03)
    own = next(iter(made("c" * 70, 1)))
    assert own.request == Request(None, "c" * 70)
    assert float(own.image.mean()) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null_class_labels": None}, "null_class_labels"),
        ({"guidance_scale": 0.5}, "1 or more"),
        ({"num_classes": None}, "class_prompts"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: use 1 or more"),
        ({"num_inference_steps": 2.7}, "num_inference_steps=2.7: use a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: use a whole number of at least 1"),
        ({"num_inference_steps": 2000}, "2000"),
        ({"batch_size": "many"}, "batch_size=many: use a whole number"),
    ],
)
def test_impossible_samplers_are_refused(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


def test_what_the_network_does_not_know_is_refused(sampler):
    made = sampler()
    with pytest.raises(ValueError, match="Class 2 does not exist: give 0 to 1"):
        next(iter(made(2, 1)))
    with pytest.raises(ValueError, match="is a prompt"):
        next(iter(made("a head", 1)))
    with pytest.raises(ValueError, match="nothing to draw"):
        spread_requests(made, [0, 1], 0)


def test_a_solver_that_makes_noise_of_an_image_is_refused(gaussian_network):
    scheduler = create_scheduler("ddim_inverse", prediction_type="epsilon")
    with pytest.raises(ValueError, match="goes from an image to noise"):
        Sampler(gaussian_network(0.0, STD), scheduler, (1, 4, 4), num_classes=1, guidance_scale=1.0)


def test_classes_are_indices_or_names_and_a_prompt_is_none_of_them(sampler):
    made = sampler()
    named = spread_requests(made, ["bright", 0], 1, class_names=["dark", "bright"])
    assert [request.label for request in named] == [1, 0]
    assert [request.label for request in spread_requests(made, None, 1)] == [0, 1]
    assert [request.label for request in spread_requests(made, 1, 2)] == [1, 1]
    for classes, message in [(["Bright"], "'Bright' is no class: give an index or one of 'dark', 'bright'"),
                             ([1.5], "1.5 is no class"), (["a head"], "a prompt by --prompt")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            spread_requests(made, classes, 1, class_names=["dark", "bright"])
    with pytest.raises(ValueError, match="class_names has 3 names for 2 classes"):
        spread_requests(made, None, 1, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"count=1\.5: use a whole number"):
        spread_requests(made, None, 1.5)
    with pytest.raises(ValueError, match="prompt=5 is no text: give classes by --classes"):
        spread_requests(made, None, 1, prompt=5)
