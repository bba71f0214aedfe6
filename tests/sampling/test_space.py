# SPDX-License-Identifier: Apache-2.0
"""Where a chain runs: a linear autoencoder's latents, in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.networks.nets import VQVAE, AutoencoderKL
from torch import nn

from medcf.guidance import X0Gradient, XtGradient
from medcf.inferers import SDEditInferer
from medcf.networks import BundleUNet
from medcf.sampling import LatentSpace, PixelSpace
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler
from medcf.schedulers.step import Step


class Linear(nn.Module):
    """x = W z + b on flattened images of 4 x 4, W of full rank 16."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(16, 16, generator=generator).double() + 4 * torch.eye(16)
        self.offset = 0.3

    def decode(self, latent):
        return (latent.flatten(1) @ self.matrix.T).reshape(latent.shape) + self.offset

    def encode(self, image):
        return torch.linalg.solve(self.matrix, (image - self.offset).flatten(1).T).T.reshape(image.shape)


def loss(image):
    """A quadratic: its gradient at x is 2 (x - 1)."""
    total = (image - 1).square().sum()
    return SimpleNamespace(total=total, logits=torch.zeros(len(image), 2))


@pytest.fixture
def latent():
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.2)])
def test_encoding_and_decoding_are_inverse_whatever_scale_and_shift(latent, scale, shift):
    space = LatentSpace(Linear(), scale, shift)
    torch.testing.assert_close(space.encode(space.decode(latent)), latent, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_guidance_in_latents_is_that_of_the_pixels_pulled_back(latent, scale):
    """x = W z / s + b, so the gradient at z is W^T g(x) / s."""
    network = Linear()
    space = LatentSpace(network, scale)
    image = space.decode(latent)
    pulled = (2 * (image - 1)).flatten(1) @ network.matrix / scale
    step = Step(latent, 0.0, 0.0, latent, latent, 10)
    found = X0Gradient(lambda z: loss(space.decode(z))).gradient(step)
    torch.testing.assert_close(found, pulled.reshape(latent.shape), rtol=0, atol=1e-9)
    noisy = latent.clone().requires_grad_()
    through = Step(noisy, 0.0, 0.0, 0.7 * noisy, noisy, 10)  # a denoiser with x0 = 0.7 z
    image = space.decode(0.7 * latent)
    pulled = 0.7 * (2 * (image - 1)).flatten(1) @ network.matrix / scale
    found = XtGradient(lambda z: loss(space.decode(z))).gradient(through)
    torch.testing.assert_close(found, pulled.reshape(latent.shape), rtol=0, atol=1e-9)


def test_pixels_are_left_as_they_are(latent):
    space = PixelSpace()
    assert space.encode(latent) is latent
    assert space.decode(latent) is latent
    assert space.range == (-1.0, 1.0)


def test_a_latent_may_change_if_any_of_its_pixels_may():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 3, 5] = 1
    small = LatentSpace(Linear()).mask(mask, (4, 4))
    assert small.nonzero().tolist() == [[0, 0, 1, 2]]


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"scale_factor=\[1.0, 0.0\]"):
        LatentSpace(Linear(), [1.0, 0.0])


def test_a_posterior_is_drawn_with_each_image_s_generator():
    torch.manual_seed(0)
    options = {"channels": (4, 8), "latent_channels": 2, "num_res_blocks": 1, "norm_num_groups": 4}
    autoencoder = AutoencoderKL(2, 1, 1, attention_levels=(False, False), **options).eval()
    image = torch.rand(2, 1, 16, 16) - 0.5
    mean, deviation = autoencoder.encode(image)
    torch.testing.assert_close(LatentSpace(autoencoder, 2.0).encode(image), 2 * mean)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    noise = torch.stack([torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(s)) for s in (3, 4)])
    drawn = LatentSpace(autoencoder, sampled=True).encode(image, generators)
    torch.testing.assert_close(drawn, mean + deviation * noise)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_methods_run_in_the_latents_of_monai_s_autoencoders(kind):
    torch.manual_seed(0)
    if kind == "kl":
        options = {"channels": (4, 8), "latent_channels": 2, "num_res_blocks": 1, "norm_num_groups": 4}
        autoencoder = AutoencoderKL(2, 1, 1, attention_levels=(False, False), **options)
    else:
        autoencoder = VQVAE(
            2, 1, 1, channels=(4,), num_res_layers=1, num_res_channels=(4,), downsample_parameters=((2, 4, 1, 1),),
            upsample_parameters=((2, 4, 1, 1, 0),), embedding_dim=2, num_embeddings=8,
        )  # fmt: skip
    network = BundleUNet(
        2, 2, 2, channels=(8, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4,
        num_class_embeds=3,
    )  # fmt: skip
    calls = []
    network.register_forward_pre_hook(lambda _module, args: calls.append(tuple(args[0].shape)))
    method = SDEditInferer(
        RespacedDDPMScheduler(1000), lambda image: torch.tensor([[1.0, 0.0]]).expand(len(image), 2), 1,
        space=LatentSpace(autoencoder.eval()), num_inference_steps=4, null_class_labels=2, progress=False,
    )  # fmt: skip
    result = method.explain(torch.rand(2, 1, 16, 16) - 0.5, network)
    assert calls == [(4, 2, 8, 8)] * 2
    assert result.image.shape == (2, 1, 16, 16)


def test_latents_are_clipped_to_the_range_of_their_space_and_not_to_that_of_images():
    for space, wanted in ((LatentSpace(Linear()), None), (LatentSpace(Linear(), range=(-4.0, 4.0)), (-4.0, 4.0))):
        method = SDEditInferer(
            RespacedDDIMScheduler(1000), len, 1, space=space, null_class_labels=2, num_inference_steps=4
        )
        assert method.scheduler.clip_sample == (wanted is not None)
        assert wanted is None or tuple(method.scheduler.clip_sample_values) == wanted


def test_in_16_bits_latents_and_images_stay_in_32():
    torch.manual_seed(0)
    options = {"channels": (4, 8), "latent_channels": 2, "num_res_blocks": 1, "norm_num_groups": 4}
    space = LatentSpace(AutoencoderKL(2, 1, 1, attention_levels=(False, False), **options).eval())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latent = space.encode(torch.rand(2, 1, 16, 16))
        assert latent.dtype == space.decode(latent).dtype == torch.float32
    assert space.mask(torch.ones(1, 1, 8, 8, dtype=torch.bool), (4, 4)).all()
