# SPDX-License-Identifier: Apache-2.0
"""Pyramid noise against its definition, and the targets that are made with it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from medcf.engines import pyramid_noise as module
from medcf.engines.pyramid_noise import PyramidNoisePrepareBatch, pyramid_noise
from medcf.engines.training_inferer import DiffusionTrainingInferer
from medcf.networks import AttentionInjection, ClassTokenUNet
from medcf.schedulers import RespacedDDPMScheduler


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def make(prediction_type="v_prediction", **options):
    scheduler = RespacedDDPMScheduler(1000, schedule="linear_beta", prediction_type=prediction_type)
    return PyramidNoisePrepareBatch(scheduler, **options)


def batch(count=4, size=12):
    labels = torch.arange(count) % 2
    return {"image": torch.rand(count, 1, size, size, size, generator=seeded(3)) * 2 - 1, "label": labels}


def neighbors(noise):
    """Correlation of voxels with the next one along the first axis, of each sample."""
    first, second = noise[:, :, 1:].flatten(1), noise[:, :, :-1].flatten(1)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(first, second, strict=True)])


@pytest.mark.parametrize("shape", [(3, 1, 20, 24, 20), (2, 2, 33, 16)])
def test_every_sample_has_standard_deviation_one_of_its_own(shape):
    noise = pyramid_noise(torch.zeros(shape), generator=seeded())
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(shape[0]), rtol=1e-5, atol=0)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("discount", [0.9, 0.5])
def test_the_noise_is_the_discounted_sum_of_its_levels(monkeypatch, discount):
    fields = []

    def recording(coarse, **options):
        assert options == {"size": (40, 48, 40), "mode": "trilinear", "align_corners": False}
        fields.append((coarse, interpolate(coarse, **options)))
        return fields[-1][1]

    monkeypatch.setattr(module, "interpolate", recording)
    noise = pyramid_noise(torch.zeros(2, 1, 40, 48, 40), discount=discount, generator=seeded(5))
    total = torch.randn(2, 1, 40, 48, 40, generator=seeded(5))  # level 0 is drawn first
    for level, (_, field) in enumerate(fields, start=1):
        total = total + discount**level * field
    for sample in range(2):
        torch.testing.assert_close(noise[sample], total[sample] / total[sample].std())


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


def test_the_noise_is_smoother_than_white_noise_and_a_discount_of_zero_is_white():
    like = torch.zeros(4, 1, 24, 24, 24)
    assert neighbors(pyramid_noise(like, generator=seeded())).min() > 0.15
    white = pyramid_noise(like, discount=0, generator=seeded(1))
    assert neighbors(white).abs().max() < 0.05
    plain = torch.randn(like.shape, generator=seeded(1))
    torch.testing.assert_close(white, plain / plain.flatten(1).std(1).view(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_the_target_is_made_with_the_noise_that_the_network_sees(prediction_type):
    torch.manual_seed(0)
    images, target, args, arguments = make(prediction_type, dropout=0.1)(batch(), "cpu")
    noise, timesteps = arguments["noise"], arguments["timesteps"]
    alpha = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0)[timesteps].view(-1, 1, 1, 1, 1).float()
    expected = {
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * images,
        "epsilon": noise,
        "sample": images,
    }
    torch.testing.assert_close(target, expected[prediction_type], rtol=1e-4, atol=1e-5)
    assert neighbors(noise).min() > 0.1
    assert torch.equal(images, batch()["image"])
    assert args == ()


def test_classes_are_dropped_at_p_uncond():
    torch.manual_seed(0)
    prepare = make(dropout=0.1)
    data = {"image": torch.zeros(4000, 1, 2, 2), "label": torch.arange(4000) % 2}
    labels = prepare(data, "cpu")[3]["class_labels"]
    assert float((labels == 2).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(labels[labels < 2], data["label"][labels < 2])


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_share_of_the_images_sees_white_noise(fraction):
    torch.manual_seed(0)
    noise = make(white_fraction=fraction).get_noise(torch.zeros(200, 1, 12, 12, 12))
    white = neighbors(noise).abs() < 0.1
    assert float(white.float().mean()) == pytest.approx(fraction, abs=0.1)


def test_reference_pairs_show_each_image_twice_with_noise_of_its_own():
    torch.manual_seed(0)
    prepare = make(dropout=0.1, reference_pairs=True)
    data = batch(200, size=4)
    images, target, _, arguments = prepare(data, "cpu")
    assert torch.equal(images[:200], images[200:])
    assert torch.equal(arguments["timesteps"][:200], arguments["timesteps"][200:])
    assert arguments["reference"] == [*range(200, 400)] * 2
    noise = arguments["noise"]
    between = torch.corrcoef(torch.stack([noise[:200].flatten(), noise[200:].flatten()]))[0, 1]
    assert abs(between) < 0.05
    velocity = prepare.scheduler.get_velocity(images, noise, arguments["timesteps"])
    torch.testing.assert_close(target, velocity)
    first, second = arguments["class_labels"].chunk(2)
    assert torch.equal(second[second < 2], first[second < 2])
    assert float((second[first < 2] == 2).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_injection_is_trained_with_checkpointing_as_without():
    data, gradients = batch(2, size=8), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = ClassTokenUNet(
            3, 1, 1, cross_attention_dim=4, attention_init=0.3, gradient_checkpointing=checkpointing, channels=(8, 8),
            attention_levels=(False, True), num_res_blocks=1, norm_num_groups=4, num_head_channels=8,
        )  # fmt: skip
        torch.nn.init.normal_(network.unet.out[2].conv.weight)
        prepare = make(dropout=0.1, reference_pairs=True)
        images, target, _, arguments = prepare(data, "cpu")
        prediction = DiffusionTrainingInferer(prepare.scheduler)(images, network, **arguments)
        if not checkpointing:
            with torch.no_grad(), AttentionInjection(network) as injection:
                injection.reference = arguments["reference"]
                noisy = prepare.scheduler.add_noise(images, arguments["noise"], arguments["timesteps"])
                expected = network(noisy, arguments["timesteps"], class_labels=arguments["class_labels"])
            torch.testing.assert_close(prediction, expected)
        (prediction - target).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("options", [{"discount": 1.5}, {"white_fraction": -0.1}])
def test_shares_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        make(**options)
