# SPDX-License-Identifier: Apache-2.0
"""Noise summed over resolutions against its recipe, the target made with it, and pairs that teach injection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.blocks.selfattention import SABlock
from scipy import ndimage
from torch import nn
from torch.nn.functional import interpolate

from medcf.networks import ClassTokenUNet
from medcf.schedulers import RespacedDDPMScheduler
from medcf.training import pyramid_noise as module
from medcf.training.inferer import DiffusionTrainingInferer
from medcf.training.pyramid_noise import PyramidNoisePrepareBatch, pyramid_noise

SHAPES = {1: (3, 2, 64), 2: (3, 2, 20, 24), 3: (3, 1, 16, 20, 16)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=4, size=(8, 8, 8)):
    image = torch.rand(count, 1, *size, generator=seeded()) * 2 - 1
    return {"image": image, "label": torch.arange(count) % 2}


def schedule(kind="v_prediction"):
    return RespacedDDPMScheduler(1000, prediction_type=kind)


def alpha_bar(timesteps, ndim=5):
    table = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0)
    return table[timesteps].reshape(-1, *(1,) * (ndim - 1))


def by_hand(shape, discount, seed):
    """Sum the levels from the same draws, with scipy's linear interpolation of cell centers."""
    generator = seeded(seed)
    noise = torch.randn(shape, generator=generator).double().numpy()
    for level in range(1, 100):
        ratio = 2 + 2 * torch.rand(1, generator=generator).item()
        size = [max(1, int(n / ratio**level)) for n in shape[2:]]
        coarse = torch.randn(*shape[:2], *size, generator=generator).double().numpy()
        zoom = [n / small for n, small in zip(shape[2:], size, strict=True)]
        for index in np.ndindex(*shape[:2]):
            fine = ndimage.zoom(coarse[index], zoom, order=1, mode="nearest", grid_mode=True)
            noise[index] += discount**level * fine
        if 1 in size:
            break
    return np.stack([sample / sample.std(ddof=1) for sample in noise])


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("discount", [0.4, 0.9])
def test_noise_is_the_sum_of_its_levels_over_its_deviation(dims, discount):
    images = torch.zeros(SHAPES[dims])
    for seed in range(3):
        noise = pyramid_noise(images, discount=discount, generator=seeded(seed))
        np.testing.assert_allclose(noise.numpy(), by_hand(SHAPES[dims], discount, seed), atol=2e-5)


def test_levels_shrink_by_powers_of_a_random_ratio_between_2_and_4(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        module, "interpolate", lambda coarse, **options: sizes.append(coarse.shape) or interpolate(coarse, **options)
    )
    ratios = []
    for seed in range(40):
        sizes.clear()
        pyramid_noise(torch.zeros(2, 3, 80, 96), generator=seeded(seed))
        for level, shape in enumerate(sizes, start=1):
            assert shape[:2] == (2, 3)
            for length, side in zip((80, 96), shape[2:], strict=True):
                assert max(1, int(length / 4**level)) <= side <= length // 2**level
        assert min(sizes[-1][2:]) == 1
        assert all(min(shape[2:]) > 1 for shape in sizes[:-1])
        ratios.append(80 / sizes[0][2])
    assert min(ratios) < 2.4
    assert max(ratios) > 3.6


@pytest.mark.parametrize("dims", SHAPES)
def test_every_sample_has_a_deviation_of_one(dims):
    noise = pyramid_noise(torch.zeros(SHAPES[dims]), generator=seeded())
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(3), rtol=1e-5, atol=1e-5)


def test_without_coarser_levels_noise_is_white():
    images = torch.zeros(2, 1, 16, 16, 16)
    noise = pyramid_noise(images, discount=0.0, generator=seeded())
    white = torch.randn(images.shape, generator=seeded())
    torch.testing.assert_close(noise, white / white.flatten(1).std(1).reshape(2, 1, 1, 1, 1))


def low_frequency_share(noise):
    """Share of the power below a quarter of the highest frequency in every axis."""
    axes = tuple(range(2, noise.ndim))
    power = torch.fft.fftn(noise, dim=axes).abs().square().mean((0, 1))
    low = torch.ones_like(power, dtype=torch.bool)
    for axis, n in enumerate(power.shape):
        shape = [n if i == axis else 1 for i in range(power.ndim)]
        low &= (torch.fft.fftfreq(n).abs() < 0.125).reshape(shape)
    return float(power[low].sum() / power.sum())


def test_more_weight_of_coarse_levels_is_more_power_at_low_frequencies():
    images = torch.zeros(4, 1, 16, 16, 16)
    shares = [low_frequency_share(pyramid_noise(images, discount=d, generator=seeded())) for d in (0.0, 0.5, 0.9)]
    assert shares[0] == pytest.approx(3**3 / 16**3, rel=0.25)  # white: the share of the frequencies, -1, 0, 1 of 16
    assert shares[1] > 3 * shares[0]
    assert shares[2] > 2 * shares[1]


def test_noise_takes_the_images_type():
    assert pyramid_noise(torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_velocity_is_made_with_the_noise_that_the_network_sees():
    torch.manual_seed(0)
    data = batch()
    images, target, args, arguments = PyramidNoisePrepareBatch(schedule(), discount=0.9)(data, "cpu")
    a = alpha_bar(arguments["timesteps"])
    expected = a.sqrt() * arguments["noise"] - (1 - a).sqrt() * images
    torch.testing.assert_close(target, expected.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(arguments["noise"].flatten(1).std(1), torch.ones(4))
    assert torch.equal(images, data["image"])
    assert args == ()
    # x0 = sqrt(A) x - sqrt(1 - A) v gives the image back
    noisy = a.sqrt() * images + (1 - a).sqrt() * arguments["noise"]
    torch.testing.assert_close((a.sqrt() * noisy - (1 - a).sqrt() * target).float(), images, rtol=1e-4, atol=1e-4)


def test_the_target_is_what_the_scheduler_says():
    for kind, key in (("epsilon", "noise"), ("sample", "image")):
        images, target, _, arguments = PyramidNoisePrepareBatch(schedule(kind))(batch(), "cpu")
        assert torch.equal(target, {"noise": arguments["noise"], "image": images}[key])


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_share_of_the_images_has_white_noise(fraction):
    torch.manual_seed(0)
    prepare = PyramidNoisePrepareBatch(schedule(), discount=0.9, white_fraction=fraction)
    noise = prepare.get_noise(torch.zeros(64, 1, 12, 12, 12))
    shares = [low_frequency_share(sample[None]) for sample in noise]
    assert np.mean(np.array(shares) < 0.04) == pytest.approx(fraction, abs=0.15)


def test_classes_are_dropped_at_p_uncond():
    torch.manual_seed(0)
    prepare = PyramidNoisePrepareBatch(schedule(), dropout=0.1)
    data = {"image": torch.zeros(4000, 1, 2, 2), "label": torch.arange(4000) % 2}
    labels = prepare(data, "cpu")[3]["class_labels"]
    assert float((labels == 2).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(labels[labels < 2], data["label"][labels < 2])


@pytest.mark.parametrize(
    ("option", "message"),
    [({"discount": 1.2}, r"discount=1\.2"), ({"white_fraction": -1.0}, r"white_fraction=-1\.0")],
)
def test_weights_outside_their_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        PyramidNoisePrepareBatch(schedule(), **option)


def test_a_pair_is_one_image_with_the_same_time_step_and_noise_of_its_own():
    torch.manual_seed(0)
    data = batch()
    prepare = PyramidNoisePrepareBatch(schedule(), reference_pairs=True, dropout=0.0, discount=0.0)
    images, target, args, arguments = prepare(data, "cpu")
    assert torch.equal(images[:4], data["image"])
    assert torch.equal(images[4:], data["image"])
    assert torch.equal(arguments["timesteps"][:4], arguments["timesteps"][4:])
    assert list(arguments["reference"]) == [4, 5, 6, 7, 4, 5, 6, 7]  # the second copies stand alone
    noise = arguments["noise"]
    for first, second in zip(noise[:4], noise[4:], strict=True):
        assert abs(float((first * second).mean())) < 0.2  # 512 white voxels
        assert float(first.std()) == pytest.approx(1, abs=1e-4)
        assert float(second.std()) == pytest.approx(1, abs=1e-4)
    a = alpha_bar(arguments["timesteps"])
    torch.testing.assert_close(target, (a.sqrt() * noise - (1 - a).sqrt() * images).float(), rtol=1e-4, atol=1e-5)
    assert args == ()


def test_half_of_the_references_have_no_class_and_the_readers_keep_theirs():
    torch.manual_seed(0)
    prepare = PyramidNoisePrepareBatch(schedule(), reference_pairs=True, dropout=0.0, discount=0.0)
    *_, arguments = prepare(batch(1000, (2, 2, 2)), "cpu")
    readers, references = arguments["class_labels"].chunk(2)
    assert torch.equal(readers, torch.arange(1000) % 2)
    nameless = references == 2
    assert float(nameless.float().mean()) == pytest.approx(0.5, abs=0.06)
    assert torch.equal(references[~nameless], readers[~nameless])


def test_a_training_with_references_opens_the_injection_and_teaches_through_it():
    torch.manual_seed(0)
    network = ClassTokenUNet(
        3, 1, 1, cross_attention_dim=4, attention_init=0.3, channels=(8, 8), attention_levels=(False, True),
        num_res_blocks=1, norm_num_groups=4, num_head_channels=8,
    )  # fmt: skip
    nn.init.normal_(network.unet.out[2].conv.weight, std=0.1)
    images, _, _, arguments = PyramidNoisePrepareBatch(schedule(), reference_pairs=True)(batch(2), "cpu")
    inferer = DiffusionTrainingInferer(schedule())
    alone = inferer(images, network, **{**arguments, "reference": None})
    noise = arguments["noise"].clone().requires_grad_()
    read = inferer(images, network, **{**arguments, "noise": noise})
    torch.testing.assert_close(read[2:], alone[2:])
    assert (read - alone)[:2].abs().amax((1, 2, 3, 4)).min() > 1e-4
    (gradient,) = torch.autograd.grad(read[0].square().sum(), noise)
    assert gradient[2].abs().max() > 1e-7  # row 0 reads row 2
    assert not gradient[1].any()
    assert not gradient[3].any()
    assert not any("forward" in vars(module) for module in network.modules() if isinstance(module, SABlock))


def test_injection_is_trained_with_checkpointing_as_without():
    """Blocks are recomputed in the backward pass, when the injection has ended."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = ClassTokenUNet(
            3, 1, 1, cross_attention_dim=4, attention_init=0.3, gradient_checkpointing=checkpointing, channels=(8, 8),
            attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4, num_head_channels=8,
        )  # fmt: skip
        nn.init.normal_(network.unet.out[2].conv.weight, std=0.1)
        images, target, _, arguments = PyramidNoisePrepareBatch(schedule(), reference_pairs=True)(batch(2), "cpu")
        prediction = DiffusionTrainingInferer(schedule())(images, network, **arguments)
        (prediction - target).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])
