# SPDX-License-Identifier: Apache-2.0
"""Methods in latents: a linear autoencoder and Gaussian classes, in closed form; and their floors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.inferers import create_method
from medcf.networks import Conditioner
from medcf.sampling import LatentSpace
from medcf.schedulers import RespacedDDPMScheduler

TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()
MEANS, STD = (-0.3, 0.2), 0.2  # of the latents of two classes
BASIS = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).double())[0].float()


class Linear(nn.Module):
    """dec(z) = W z with orthonormal columns, enc its pseudo-inverse: images of 4 x 4, 8 latents."""

    def __init__(self):
        super().__init__()
        self.basis = nn.Parameter(BASIS.clone())

    def encode(self, image):
        return (image.flatten(1) @ self.basis).reshape(-1, 1, 2, 4)

    def decode(self, latent):
        return (latent.flatten(1) @ self.basis.T).reshape(-1, 1, 4, 4)


class Classes(nn.Module):
    """The exact denoiser of classes N(m, s^2 I); a class may have an image as its mean."""

    num_class_embeds = 2

    def __init__(self, means):
        super().__init__()
        self.means = means

    def forward(self, sample, timesteps, class_labels):
        a = TABLE[int(timesteps[0])]
        mean = torch.stack([self.means[int(y)].expand(sample.shape[1:]) for y in class_labels])
        clean = mean + a**0.5 * STD**2 / (a * STD**2 + 1 - a) * (sample - a**0.5 * mean)
        return (sample - a**0.5 * clean) / (1 - a) ** 0.5


LATENT = Classes([torch.full((1, 2, 4), mean) for mean in MEANS])
PIXEL = Classes([Linear().decode(mean[None])[0].detach() for mean in LATENT.means])


def judge(image):
    bright = (image.flatten(1) @ BASIS.sum(1)) / 8  # the mean of the latents
    return torch.stack([-bright, bright], dim=1) * 20


def make(name, *, latent=True, **options):
    defaults = {"num_inference_steps": 20, "progress": False, "guidance_scale": 1.0, "keep_background": False}
    defaults |= {"null_class_labels": None, "target": 1, "space": LatentSpace(Linear()) if latent else None}
    if name != "ddim_inversion":
        defaults |= {"clip_denoised": False}
    return create_method(name, scheduler=RespacedDDPMScheduler(1000), classifier=judge, **(defaults | options))


@pytest.fixture
def within():
    """Two images that the decoder can make, of class 0."""
    latent = MEANS[0] + 0.1 * torch.randn(2, 1, 2, 4, generator=torch.Generator().manual_seed(1))
    return Linear().decode(latent).detach()


@pytest.fixture
def outside():
    """Detail that it cannot make."""
    noise = 0.1 * torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    return (noise - noise @ BASIS @ BASIS.T).reshape(2, 1, 4, 4)


METHODS = [
    ("sdedit", {"strength": 0.6, "subtract_reconstruction": True}),
    ("ddpm_inversion", {"strength": 0.7}),
    ("ddpm_inversion", {"strength": 0.7, "subtract_reconstruction": True}),
    ("direct_inversion", {"strength": 0.7}),
    ("ddim_inversion", {"depth": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_of_images_that_the_decoder_can_make_the_result_is_that_in_pixels(within, name, options):
    """These results do not depend on the noise, which differs: x + (m_1 - m_0) times a factor of the schedule."""
    in_latents, in_pixels = (
        make(name, latent=latent, **options).explain(within, network, ["a", "b"]).image
        for latent, network in ((True, LATENT), (False, PIXEL))
    )
    torch.testing.assert_close(in_latents, in_pixels, rtol=0, atol=1e-4)
    assert (in_latents - within).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("name", "options"), [*METHODS, ("sdedit", {"strength": 0.6}), ("diffice", {"classifier_scales": (5,)})]
)
def test_what_the_decoder_cannot_make_stays_as_it_is(within, outside, name, options):
    if name == "diffice":
        options = {"num_iterations": 2, "perceptual_scale": 0.0, "class_labels": 0, "strength": 0.5, **options}
        method = create_method(
            name, scheduler=RespacedDDPMScheduler(1000), classifier=judge, target=1, num_inference_steps=20,
            progress=False, clip_denoised=False, space=LatentSpace(Linear()), **options,
        )  # fmt: skip
    else:
        method = make(name, **options)
    images = within + outside
    result = method.explain(images, LATENT, ["a", "b"])
    change = (result.image - images).flatten(1)
    torch.testing.assert_close(change @ BASIS @ BASIS.T, change, rtol=0, atol=1e-5)
    assert change.abs().mean() > 0.05
    plain = method.explain(within, LATENT, ["a", "b"]).image - within
    torch.testing.assert_close(change, plain.flatten(1), rtol=0, atol=1e-4)  # and has no influence
    torch.testing.assert_close(result.confidences[:, -1], judge(result.image).softmax(1)[:, 1])


def test_a_decoded_result_loses_it(within, outside):
    images = within + outside
    options = {"strength": 0.6, "space": LatentSpace(Linear(), results="decoded")}
    result = make("sdedit", **options).explain(images, LATENT, ["a", "b"]).image.flatten(1)
    torch.testing.assert_close(result @ BASIS @ BASIS.T, result, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="results='both'"):
        LatentSpace(Linear(), results="both")


def test_the_floors_are_those_of_the_projection(within, outside):
    result = make("sdedit").explain(within + outside, LATENT, ["a", "b"])
    rms = (outside / 2).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(result.extras["floor"], rms, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(result.extras["difference_floor"], torch.zeros(2), rtol=0, atol=1e-6)
    edit = (result.difference / 2).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(result.extras["edit_rms"], edit)
    assert not result.extras["below_floor"].any()
    within_range = make("sdedit").explain(within, LATENT, ["a", "b"])
    torch.testing.assert_close(within_range.extras["floor"], torch.zeros(2), rtol=0, atol=1e-6)
    assert not make("sdedit", latent=False).explain(within, PIXEL, ["a", "b"]).extras  # pixels have no floor


def test_the_floors_are_measured_where_the_image_may_change(within, outside):
    region = torch.zeros(1, 1, 4, 4)
    region[..., :2] = 1
    result = make("sdedit", region=region).explain(within + outside, LATENT, ["a", "b"])
    rms = (outside[..., :2] / 2).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(result.extras["floor"], rms, rtol=1e-3, atol=1e-6)


class Lossy(Linear):
    """Its encoder finds all latents 10 % too small, so decoded images are not encoded as what they were made from."""

    def encode(self, image):
        return 0.9 * super().encode(image)


def test_an_edit_below_the_floor_is_flagged_and_an_image_that_did_not_run_is_not(within):
    images = torch.cat([within, -within[:1]])  # the last is of the target class already
    method = make("ddpm_inversion", strength=0.05, space=LatentSpace(Lossy()))
    result = method.explain(images, LATENT, ["a", "b", "c"])
    size = (images / 2).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(result.extras["floor"], 0.1 * size, rtol=1e-3, atol=0)
    torch.testing.assert_close(result.extras["difference_floor"], 0.09 * size, rtol=1e-3, atol=0)
    assert (result.extras["edit_rms"] < 0.09 * size).all()
    assert result.extras["below_floor"].tolist() == [1.0, 1.0, 0.0]
    assert result.unchanged.tolist() == [False, False, True]
    larger = make("ddpm_inversion", strength=0.9, space=LatentSpace(Lossy())).explain(images[:2], LATENT, ["a", "b"])
    assert not larger.extras["below_floor"].any()


def test_a_second_pass_adds_to_the_first(within, outside):
    """Each pass changes its own input by the difference of two decoded images."""
    options = {"strength": 0.4}
    once = make("ddpm_inversion", **options).explain(within + outside, LATENT, ["a", "b"])
    twice = make("ddpm_inversion", num_iterations=2, **options).explain(within + outside, LATENT, ["a", "b"])
    torch.testing.assert_close(twice.trajectory[:, 1], once.image, rtol=0, atol=1e-5)
    change = (twice.image - within - outside).flatten(1)
    torch.testing.assert_close(change @ BASIS @ BASIS.T, change, rtol=0, atol=1e-5)


def test_prompts_of_one_s_own_lead_where_they_lead(within):
    """Contexts are the classes' numbers: the prompt has the last word, and the target is the class that is reached."""

    class Prompted(nn.Module):
        with_conditioning = True

        def forward(self, sample, timesteps, context):
            return LATENT(sample, timesteps, context[:, 0, 0].long())

    contexts = torch.tensor([[[0.0]], [[1.0]]])
    conditioner = Conditioner(contexts=contexts, by_class=False, prompt=contexts[1:])
    method = make("ddpm_inversion", target="reached", conditioner=conditioner)
    result = method.explain(torch.cat([within, -within[:1]]), Prompted(), ["a", "b", "c"])
    assert result.target.tolist() == [1, 1, 1]
    assert result.flipped.tolist() == [True, True, False]
    assert not result.unchanged.any()
    assert (result.num_function_evaluations > 0).all()
    torch.testing.assert_close(result.confidences[:, -1], judge(result.image).softmax(1)[:, 1])
    torch.testing.assert_close(result.confidences[:, 0], judge(result.trajectory[:, 0]).softmax(1)[:, 1])
    toward = make("ddpm_inversion", target=1, conditioner=conditioner).explain(within, Prompted(), ["a", "b"])
    torch.testing.assert_close(result.image[:2], toward.image, rtol=0, atol=1e-5)
    stopping = method.with_options(confidence_threshold=0.5, num_iterations=2)
    assert stopping.explain(within, Prompted(), ["a", "b"]).iterations.tolist() == [2, 2]
    with pytest.raises(ValueError, match="target='reached' takes a method that follows a prompt"):
        make("ddpm_inversion", target="reached").explain(within, LATENT)
