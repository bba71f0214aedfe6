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


def wide(mask, width):
    """Maximum over a window, pixel by pixel."""
    reach = width // 2
    padded = torch.nn.functional.pad(mask, [reach] * 4, value=-1.0)
    return torch.stack([padded[..., i : i + 8, j : j + 8] for i in range(width) for j in range(width)]).amax(0)


def kept_mask(clean, images, threshold, width):
    """Where the input is put back: the dilated difference, as a share of its maximum, is below the threshold."""
    share = (clean - images).abs().sum(1, keepdim=True)
    share = share / share.amax((1, 2, 3), keepdim=True)
    return wide(share, width) < threshold


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("paper", {}),
        ("published_code", {"mask_threshold": 0.5, "dilation": 1}),
        ("published_code", {"mask_threshold": 0.9, "dilation": 3, "mask_start": 0.2}),
        ("published_code", {"mask": False, "l1_scale": 0.0}),
    ],
)
def test_chain_follows_the_published_equations_on_gaussian_data(gaussian_network, images, variant, options):
    """J = sqrt(A) s^2 / (A s^2 + 1 - A) multiplies the class gradient; in the code not the perceptual one."""
    method = create_method(
        "universal", scheduler=RespacedDDPMScheduler(1000), classifier=linear, target=1, perceptual=nn.Identity(),
        variant=variant, num_inference_steps=20, strength=0.5, classifier_scales=SCALE, perceptual_scale=PULL * 64,
        class_loss="logit", clip_denoised=False, progress=False, **options,
    )  # fmt: skip
    result = method.explain(images, gaussian_network(MEAN, STD), IDS)
    code = variant == "published_code"
    masked = code and options.get("mask", True)
    l1 = options.get("l1_scale", 0.05) if code else 0.0
    threshold, width = options.get("mask_threshold", 0.15), options.get("dilation", 5)
    kept = [round(i * 999 / 19) for i in range(20)]
    own, known = (make_generators(0, IDS, stream=(name, 0)) for name in ("pass", "known"))

    def noise(generators):
        return torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators])

    original, top = images.double(), TABLE[kept[10 if code else 9]]  # the code noises one kept step further
    x, mask, shares = top**0.5 * original + (1 - top) ** 0.5 * noise(own), None, []
    for number, i in enumerate(reversed(range(10))):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        jacobian = a**0.5 * STD**2 / (a * STD**2 + 1 - a)
        clean = MEAN + jacobian * (x - a**0.5 * MEAN)
        mean = p**0.5 * (1 - a / p) / (1 - a) * clean + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        variance = (1 - a / p) * (1 - p) / (1 - a)
        proximity = 2 * PULL * (clean - original)
        gradient = proximity - jacobian * SCALE if code else jacobian * (proximity - SCALE)
        gradient = gradient + l1 * (x - original).sign()
        x = mean - variance * gradient + (variance**0.5 * noise(own) if i else 0)
        if masked and number >= round(options.get("mask_start", 0.5) * 10):
            mask = kept_mask(clean, original, threshold, width)
            shares.append(float(mask.double().mean()))
            if i:  # the level of the step, not of its result
                x = torch.where(mask, a**0.5 * original + (1 - a) ** 0.5 * noise(known), x)
    x = x if mask is None else torch.where(mask, original, x)
    torch.testing.assert_close(result.image, x.float(), rtol=0, atol=2e-4)
    if masked:
        assert min(shares) > 0.1
        assert max(shares) < 0.99
        assert torch.equal(result.image[mask], images[mask])  # bit for bit


def test_same_result_as_the_estimator_of_diffice(make_method, tiny_unet, images):
    unet = tiny_unet()
    ours = make_method("universal").explain(images, unet, IDS)
    theirs = make_method("diffice", gradient="xt").explain(images, unet, IDS)
    assert torch.equal(ours.image, theirs.image)


def test_variants_agree_without_what_the_code_adds(make_method, tiny_unet, images):
    unet = tiny_unet()
    plain = {"mask": False, "l1_scale": 0.0, "start_variant": "exact", "class_loss": "cross_entropy"}
    paper = make_method("universal").explain(images, unet, IDS).image
    code = make_method("universal", variant="published_code", **plain).explain(images, unet, IDS).image
    torch.testing.assert_close(paper, code, rtol=0, atol=1e-5)


def test_the_published_code_has_its_own_loss_distance_and_start(make_method):
    method = make_method("universal", variant="published_code")
    assert (method.options.l1_scale, method.options.mask, method.options.class_loss, method.options.start_variant) == (
        0.05, True, "logit", "published_code",
    )  # fmt: skip
    paper = make_method("universal")
    assert (paper.options.l1_scale, paper.options.mask, paper.options.class_loss, paper.options.start_variant) == (
        0.0, False, "cross_entropy", "exact",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "code"}, "'published_code'"),
        ({"variant": "gmd"}, "'paper', 'published_code'"),
        ({"dilation": 4}, "odd width"),
        ({"mask_start": 1.5}, "mask_start=1.5 is a fraction"),
        ({"l1_scale": "much"}, "l1_scale"),
    ],
)
def test_options_out_of_range_are_refused(make_method, options, message):
    with pytest.raises(ValueError, match=message):
        make_method("universal", **options)
