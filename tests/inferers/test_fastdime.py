# SPDX-License-Identifier: Apache-2.0
"""FastDiME: against the published loops written out, and what its mask leaves alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from medcf.guidance import PerceptualFeatures
from medcf.guidance.regions import KnownRegion, changed_region
from medcf.sampling import Chain, make_generators
from medcf.schedulers import RespacedDDPMScheduler
from medcf.schedulers.step import Step

IDS = ["a", "b", "c", "d"]
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()
STEPS, COUNT, SCALE = 20, 8, 40.0


def written_out(network, classifier, phi, original, variant):
    """One pass as the paper and as both code bases run it, with this project's draws."""
    kept = [round(i * 999 / (STEPS - 1)) for i in range(COUNT + 1)]
    generators = make_generators(0, IDS, stream=("pass", 0))
    known = make_generators(0, IDS, stream=("known", 0))
    clip = variant != "med"

    def noise(sources):
        return torch.stack([torch.randn(original.shape[1:], generator=generator) for generator in sources])

    def loss_gradient(point):
        point = point.detach().requires_grad_()
        logits = classifier(point)
        class_loss = -logits[:, 1] if variant == "celeba" else -logits.log_softmax(1)[:, 1]
        distance = (phi(point) - phi(original)).pow(2).flatten(1).mean(1)
        return torch.autograd.grad((SCALE * class_loss + 3.0 * distance).sum(), point)[0]

    def kept_part(image):
        difference = (image - original).abs().sum(1, keepdim=True)
        difference = difference / difference.flatten(1).max(1)[0].reshape(-1, 1, 1, 1)
        width = 21 if variant == "med" else 5
        return F.max_pool2d(difference, width, stride=1, padding=width // 2) < 0.15

    a = TABLE[kept[COUNT if variant == "celeba" else COUNT - 1]]
    z = a**0.5 * original + (1 - a) ** 0.5 * noise(generators)
    clean = original
    for number, i in enumerate(reversed(range(COUNT))):
        if variant == "med" and i == 0:
            return clean
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        epsilon = network(z, timesteps=torch.full((len(z),), kept[i])).detach()
        predicted = (z - (1 - a) ** 0.5 * epsilon) / a**0.5
        predicted = predicted.clamp(-1, 1) if clip else predicted
        beta = 1 - a / p
        mean = p**0.5 * beta / (1 - a) * predicted + (a / p) ** 0.5 * (1 - p) / (1 - a) * z
        variance = beta if i else (1 - TABLE[kept[1]] / a) * (1 - a) / (1 - TABLE[kept[1]])
        masked, keep = predicted, None
        if number >= COUNT / 2:
            keep = kept_part(predicted)
            masked = torch.where(keep, original, predicted)
        point = {"paper": masked, "celeba": clean, "med": predicted}[variant]
        z = mean - variance * loss_gradient(point) + (variance**0.5 * noise(generators) if i else 0)
        if keep is not None:
            level = p if variant == "paper" else a
            part = level**0.5 * original + (1 - level) ** 0.5 * noise(known) if i else original
            z = torch.where(keep, part, z)
        clean = masked
    return z.clamp(-1, 1) if clip else z


@pytest.mark.parametrize("variant", ["paper", "celeba", "med"])
def test_pass_is_the_published_loop_written_out(make_method, tiny_unet, images, variant, brightness):
    unet, classifier, extractor = tiny_unet(), brightness(slope=2.0), nn.Conv2d(1, 4, 3)
    method = make_method(
        "fastdime", classifier=classifier, perceptual=PerceptualFeatures(extractor), variant=variant,
        classifier_scales=SCALE, perceptual_scale=3.0, strength=COUNT / STEPS,
    )  # fmt: skip
    result = method.explain(images, unet, IDS)
    wanted = written_out(unet, classifier, extractor, images, variant)
    torch.testing.assert_close(result.image, wanted.detach(), rtol=0, atol=5e-4)
    assert result.num_function_evaluations.tolist() == [COUNT - (variant == "med")] * 4


class Corner(nn.Module):
    """Class 1 is a bright corner; the rest of the image does not matter."""

    def forward(self, image):
        logit = 5 * image[..., :4, :4].flatten(1).mean(1)
        return torch.stack([-logit, logit], dim=1)


@pytest.mark.parametrize("known_noise", ["fresh", "shared"])
@pytest.mark.parametrize("level", ["exact", "published_code"])
def test_pixels_outside_the_mask_are_bit_equal_to_the_input(make_method, gaussian_network, level, known_noise):
    """The network believes the input, the classifier wants a corner: the rest must not move at all."""
    image = torch.full((2, 1, 16, 16), -0.3)
    options = {"classifier": Corner(), "classifier_scales": 60, "known_noise": known_noise, "level": level}
    options["mask_threshold"] = 0.5  # the code's level leaves noise in the prediction
    network = gaussian_network(-0.3, 0.05)
    free = make_method("fastdime", mask=False, **options).explain(image, network)
    masked = make_method("fastdime", **options).explain(image, network)
    assert masked.flipped.all()
    far = torch.ones(16, 16, dtype=torch.bool)
    far[:8, :8] = False  # the corner and the dilation around it
    untouched = (masked.image == image).all(dim=0)[0]
    assert untouched[far].float().mean() > 0.8
    assert not (free.image == image).any()


@pytest.mark.parametrize("where", ["masked", "prediction"])
def test_the_gradient_is_taken_at_the_prediction_with_or_without_the_input_put_back(
    make_method, gaussian_network, where
):
    points = []

    class Watched(Corner):
        def forward(self, image):
            if image.requires_grad:
                points.append(image.detach().clone())
            return super().forward(image)

    image = torch.full((2, 1, 16, 16), -0.3)
    options = {"mask_start": 0.0, "mask_threshold": 0.5, "dilation": 1, "gradient_at": where}
    make_method("fastdime", classifier=Watched(), **options).explain(image, gaussian_network(-0.3, 0.05))
    kept = torch.stack(points) == image
    assert len(points) == 5
    if where == "masked":
        assert (kept.flatten(1).float().mean(1) > 0.2).all()
        assert not kept.flatten(2).all(2).any()
    else:
        assert not kept.any()


def test_known_part_of_the_code_keeps_noise_that_the_exact_one_does_not(make_method, gaussian_network):
    image = torch.full((1, 1, 16, 16), -0.3)
    options = {"classifier": Corner(), "classifier_scales": 60, "final_composite": False}
    network = gaussian_network(-0.3, 0.05)
    exact, code = (
        make_method("fastdime", level=v, **options).explain(image, network) for v in ("exact", "published_code")
    )
    assert float((exact.image == image).float().mean()) > 0.5
    assert float((code.image == image).float().mean()) < 0.01  # t is one step behind: its last noise stays


def test_without_mask_it_is_the_single_pass_of_diffice(make_method, tiny_unet, images):
    unet = tiny_unet()
    ours = make_method("fastdime", mask=False).explain(images, unet, IDS)
    assert torch.equal(ours.image, make_method("diffice_single").explain(images, unet, IDS).image)
    masked = make_method("fastdime", mask_threshold=0.5, dilation=1).explain(images, unet, IDS)
    assert (masked.image == images).float().mean() > 0.2


def test_mask_that_starts_at_the_end_changes_nothing_but_an_earlier_one_does(make_method, tiny_unet, images):
    unet = tiny_unet()
    never = make_method("fastdime", mask_start=1.0).explain(images, unet, IDS).image
    assert torch.equal(never, make_method("fastdime", mask=False).explain(images, unet, IDS).image)
    always = make_method("fastdime", mask_start=0.0, mask_threshold=1.0, dilation=1).explain(images, unet, IDS)
    assert ((always.image != images).sum(dim=(1, 2, 3)) <= 1).all()  # only the largest difference may stay


def test_options_go_before_the_variant(make_method):
    method = make_method("fastdime", variant="celeba", level="exact", class_loss="cross_entropy", dilation=3)
    assert (method.options.level, method.options.class_loss, method.options.dilation) == ("exact", "cross_entropy", 3)
    assert (method.options.gradient_step, method.options.start_variant) == ("previous", "published_code")
    assert make_method("fastdime", variant="med").options.clip_denoised is False


def test_l1_term_pulls_the_noisy_image_towards_the_input(make_method, network, images):
    options = {"classifier_scales": 0, "mask": False}
    free, tied = (make_method("fastdime", l1_scale=s, **options).explain(images, network, IDS) for s in (0, 2))
    assert (tied.difference.abs().mean(dim=(1, 2, 3)) < free.difference.abs().mean(dim=(1, 2, 3))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "published_code"}, "'paper', 'celeba', 'med'"),
        ({"dilation": 4}, "odd"),
        ({"mask_threshold": 1.5}, r"mask_threshold=1\.5"),
        ({"known_noise": "old"}, "'fresh', 'shared'"),
        ({"level": "t"}, "'exact', 'published_code'"),
    ],
)
def test_wrong_options_are_refused(make_method, options, message):
    with pytest.raises(ValueError, match=message):
        make_method("fastdime", **options)


def make_chain(original):
    scheduler = RespacedDDPMScheduler(1000)
    scheduler.set_timesteps(STEPS)
    return Chain(
        start=original, original=original, ids=IDS, number=0, timesteps=scheduler.timesteps_from(0.4),
        level=None, denoiser=None, scheduler=scheduler, seeds=[0] * 4,
    )  # fmt: skip


@pytest.mark.parametrize("level", ["exact", "published_code"])
@pytest.mark.parametrize("noise", ["fresh", "shared"])
def test_known_part_is_noised_to_its_level(images, noise, level):
    chain = make_chain(images)
    region = KnownRegion(chain, torch.zeros(4, 1, 8, 8, dtype=torch.bool), noise=noise, level=level)
    maps = []
    for t in chain.timesteps[:2]:
        sample = torch.full_like(images, 9.0)
        step = Step(sample, 0.0, 0.0, sample, sample, t)
        a = TABLE[t if level == "published_code" else chain.scheduler.previous(t)]
        maps.append((region.after_step(sample, step) - a**0.5 * images) / (1 - a) ** 0.5)
        first = torch.stack([torch.randn(1, 8, 8, generator=g) for g in chain.generators("known")])
        torch.testing.assert_close(maps[0], first, rtol=0, atol=1e-4)
    assert torch.allclose(*maps, atol=1e-4) == (noise == "shared")
    last = Step(images + 1, 0.0, 0.0, images, images, chain.timesteps[-1])
    assert torch.equal(region.after_step(images + 1, last), images)


def test_changed_region_is_relative_dilated_and_empty_without_a_change():
    original = torch.zeros(3, 2, 9, 9, 9)
    image = original.clone()
    image[0, 0, 4, 4, 4], image[0, 1, 0, 0, 0] = 2.0, -0.2
    image[1, :, 4, 4, 4] = 0.01  # a small change is the largest one of its image
    mask = changed_region(image, original, threshold=0.15, dilation=3)
    assert mask.shape == (3, 1, 9, 9, 9)
    assert mask.flatten(1).sum(1).tolist() == [27, 27, 0]
    assert mask[0, 0, 3:6, 3:6, 3:6].all()
    assert changed_region(image, original, threshold=0.05, dilation=3)[0].sum() == 27 + 8
