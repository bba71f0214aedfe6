# SPDX-License-Identifier: Apache-2.0
"""The x_t gradient: the exact Jacobian of Gaussian data, and what goes through the denoiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.inferers import create_method
from medcf.sampling import make_generators
from medcf.schedulers import RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()
MEAN, STD, SCALE, PULL = 0.3, 0.2, 4.0, 3.0


def linear(image):
    """Logits 0 and the sum of the pixels."""
    return torch.stack([image.new_zeros(len(image)), image.flatten(1).sum(1) - 99], dim=1)


@pytest.mark.parametrize("variant", ["paper", "published_code"])
def test_chain_follows_the_jacobian_of_gaussian_data(gaussian_network, images, variant):
    """J = sqrt(A) s^2 / (A s^2 + 1 - A) multiplies the class gradient; in the code not the perceptual one."""
    method = create_method(
        "universal", scheduler=RespacedDDPMScheduler(1000), classifier=linear, target=1, perceptual=nn.Identity(),
        variant=variant, num_inference_steps=20, strength=0.5, classifier_scales=SCALE, perceptual_scale=PULL * 64,
        class_loss="logit", clip_denoised=False, progress=False,
    )  # fmt: skip
    result = method.explain(images, gaussian_network(MEAN, STD), IDS)
    kept = [round(i * 999 / 19) for i in range(20)]
    generators = make_generators(0, IDS, stream=("pass", 0))

    def noise():
        return torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators])

    x = TABLE[kept[9]] ** 0.5 * images.double() + (1 - TABLE[kept[9]]) ** 0.5 * noise()
    for i in reversed(range(10)):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        jacobian = a**0.5 * STD**2 / (a * STD**2 + 1 - a)
        clean = MEAN + jacobian * (x - a**0.5 * MEAN)
        mean = p**0.5 * (1 - a / p) / (1 - a) * clean + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        variance = (1 - a / p) * (1 - p) / (1 - a)
        proximity = 2 * PULL * (clean - images)
        gradient = jacobian * (proximity - SCALE) if variant == "paper" else proximity - jacobian * SCALE
        x = mean - variance * gradient + (variance**0.5 * noise() if i else 0)
    torch.testing.assert_close(result.image, x.float(), rtol=0, atol=2e-4)


def test_same_result_as_the_estimator_of_diffice(make_method, tiny_unet, images):
    unet = tiny_unet()
    ours = make_method("universal").explain(images, unet, IDS)
    theirs = make_method("diffice", gradient="xt").explain(images, unet, IDS)
    assert torch.equal(ours.image, theirs.image)


def test_variants_agree_without_a_perceptual_network(make_method, tiny_unet, images):
    unet = tiny_unet()
    paper, code = (
        make_method("universal", variant=v).explain(images, unet, IDS).image for v in ("paper", "published_code")
    )
    torch.testing.assert_close(paper, code, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="'paper', 'published_code'"):
        make_method("universal", variant="gmd")
