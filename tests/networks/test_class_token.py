# SPDX-License-Identifier: Apache-2.0
"""The class token, the null token, patches and checkpointing of ControlCG's network."""

from __future__ import annotations

import copy

import pytest
import torch
from einops import rearrange
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from medcf.networks import AttentionInjection, ClassTokenUNet, Condition, Denoiser
from medcf.runtime.memory import peak_bytes
from medcf.schedulers import RespacedDDIMScheduler

UNET = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
UNET |= {"num_head_channels": 8, "cross_attention_dim": 4}


def make(spatial_dims=2, **options):
    torch.manual_seed(0)
    network = ClassTokenUNet(spatial_dims, 1, 1, **{"attention_init": 0.3, **UNET, **options})
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.1)
    return network


def images(count=4, spatial_dims=2, size=8):
    return torch.randn(count, 1, *(size,) * spatial_dims, generator=torch.Generator().manual_seed(1))


def steps(count=4):
    return torch.arange(count) * 100 + 7


class Echo(nn.Module):
    """Stands for the U-Net: gives back what it gets, and keeps it."""

    def forward(self, image, timesteps, context):
        self.image = image
        return image


def test_the_network_inside_is_monais_with_the_class_as_its_context():
    network = make(use_combined_linear=True).eval()
    plain = DiffusionModelUNet(2, 1, 1, with_conditioning=True, use_combined_linear=True, **UNET).eval()
    plain.load_state_dict(network.unet.state_dict())
    labels = torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        expected = plain(images(), steps(), network.embedding.weight[labels][:, None])
        given = network(images(), timesteps=steps(), class_labels=labels)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
        assert (given - network(images(), timesteps=steps(), class_labels=labels.flip(0))).abs().max() > 1e-3


def test_no_class_is_the_null_class_and_a_context_stands_for_it():
    network = make().eval()
    with torch.no_grad():
        null = network(images(), steps(), class_labels=torch.full((4,), 2))
        assert torch.equal(network(images(), steps()), null)
        assert torch.equal(network(images(), steps(), context=network.embedding.weight[2].expand(4, 1, 4)), null)
        assert torch.equal(network(images()), network(images(), torch.zeros(4, dtype=torch.long)))
    assert network.num_class_embeds == 3


def test_the_null_token_learns_from_dropped_rows_alone():
    network = make()
    for labels, moved in {(0, 1, 1, 0): {0, 1}, (0, 2, 2, 0): {0, 2}, (2, 2, 2, 2): {2}}.items():
        network.zero_grad()
        network(images(), steps(), class_labels=torch.tensor(labels)).square().sum().backward()
        gradient = network.embedding.weight.grad.abs().amax(1)
        assert set(gradient.nonzero().flatten().tolist()) == moved
    rows = [network(images(), steps(), class_labels=torch.tensor([0, 2, 2, 0]))[row].square().sum() for row in range(4)]
    for row, dropped in enumerate([False, True, True, False]):
        (gradient,) = torch.autograd.grad(rows[row], network.embedding.weight, retain_graph=True)
        assert bool(gradient[2].any()) == dropped


def test_guidance_compares_the_class_with_the_null_token():
    network, scheduler = make().eval(), RespacedDDIMScheduler(1000, prediction_type="v_prediction")
    labels = torch.tensor([0, 1, 1, 0])
    denoiser = Denoiser(network, scheduler, Condition(labels, null=Condition(2), scale=3.0))
    with torch.no_grad():
        guided = denoiser(images(), 400).noise
        time = torch.full((4,), 400)
        velocity = 3 * network(images(), time, class_labels=labels) - 2 * network(images(), time)
    alpha = scheduler.alpha_bar(400)
    torch.testing.assert_close(guided, alpha**0.5 * velocity + (1 - alpha) ** 0.5 * images(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dims", "patch"), [(2, 2), (2, 4), (3, 2), (3, 1)])
def test_patches_come_back_where_they_were(dims, patch):
    network = make(dims, patch_size=patch, norm_num_groups=4)
    network.unet = Echo()
    image = torch.arange(2 * 8 * 16 * 24.0)[: 2 * 8 * 16 * (24 if dims == 3 else 1)]
    image = image.reshape(2, 1, 8, 16, *((24,) if dims == 3 else ()))
    assert torch.equal(network(image), image)
    pattern = "b c (x i) (y j) (z k) -> b (c i j k) x y z" if dims == 3 else "b c (x i) (y j) -> b (c i j) x y"
    sides = dict.fromkeys("ijk"[:dims], patch)
    assert torch.equal(network.unet.image, rearrange(image, pattern, **sides))


def test_patches_keep_the_memory_layout():
    network = make(3, patch_size=2)
    network.unet = Echo()
    network(images(2, 3).to(memory_format=torch.channels_last_3d))
    assert network.unet.image.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="divisible by patch_size=4"):
        make(patch_size=4)(images(size=6))
    with pytest.raises(ValueError, match="num_classes=0"):
        make(num_classes=0)


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_attention_has_an_effect_from_the_start_if_asked_for(std):
    torch.manual_seed(0)
    network = ClassTokenUNet(2, 1, 1, attention_init=std, **UNET).eval()
    nn.init.normal_(network.unet.out[2].conv.weight)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        plain = network(images(), steps(), class_labels=labels)
        named = (network(images(), steps(), class_labels=1 - labels) - plain).abs().max()
        with AttentionInjection(network) as injection:
            injection.reference = [2, 3, 2, 3]
            injected = (network(images(), steps(), class_labels=labels) - plain).abs().max()
    assert (named > 1e-3) == (injected > 1e-3) == (std > 0)


def gradients(network, after, injected=True):
    """Gradients of a training step whose backward runs inside or ``after`` the injection."""
    network.zero_grad()
    injection = AttentionInjection(network)
    with injection:
        injection.reference = [2, 3, 2, 3] if injected else None
        loss = network(images(), steps(), class_labels=torch.tensor([0, 1, 2, 2])).square().mean()
        if not after:
            loss.backward()
        injection.reference = [1, 1, 2, 2]  # of the next step
    if after:
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("injected", [False, True])
def test_checkpointing_gives_the_same_gradients(injected):
    networks = [make(gradient_checkpointing=checkpointing) for checkpointing in (False, True)]
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()
    expected = gradients(networks[0], after=True, injected=injected)
    torch.testing.assert_close(gradients(networks[1], after=True, injected=injected), expected)
    torch.testing.assert_close(gradients(networks[1], after=False, injected=injected), expected)


def test_a_recomputation_may_be_repeated():
    network = make(gradient_checkpointing=True)
    with AttentionInjection(network) as injection:
        injection.reference = [2, 3, 2, 3]
        loss = network(images(), steps()).square().mean()
    first = torch.autograd.grad(loss, network.embedding.weight, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, network.embedding.weight), first)
    before = network(images(), steps())
    torch.testing.assert_close(before, make()(images(), steps()))


def test_checkpointing_takes_less_memory_in_training():
    peaks = []
    for checkpointing in (False, True):
        network = make(3, gradient_checkpointing=checkpointing, num_res_blocks=2)
        noisy = images(2, 3, 16)
        peaks.append(peak_bytes(lambda net=network, x=noisy: net(x, steps(2)).mean().backward(), torch.device("cpu")))
    assert peaks[1] < 0.7 * peaks[0]


def test_a_copy_with_checkpointing_is_a_network_of_its_own():
    network = make(gradient_checkpointing=True)
    twin = copy.deepcopy(network)
    before = network(images(), steps())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(network(images(), steps()), before)
    assert (twin(images(), steps()) - before).abs().max() > 1e-2


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_may_run_one_by_one_where_they_do_not_mix(rows):
    network, split = (make(3, rows_at_once=number).eval() for number in (None, rows))
    assert network.state_dict().keys() == split.state_dict().keys()
    noisy, labels = images(4, 3), torch.tensor([1, 2, 1, 2])
    given = []
    for one in (network, split):
        with torch.no_grad(), AttentionInjection(one) as injection:
            injection.reference = [2, 3, 2, 3]
            given.append(one(noisy, steps(), class_labels=labels))
    torch.testing.assert_close(given[1], given[0], rtol=1e-5, atol=1e-5)
    assert (given[0] - network(noisy, steps(), class_labels=labels))[:2].abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(split(noisy, steps()).square().sum(), split.embedding.weight)
    assert gradient[2].any()
    with pytest.raises(ValueError, match="rows_at_once=0"):
        make(rows_at_once=0)


def test_rows_one_by_one_take_less_memory():
    peaks = []
    for rows in (None, 1):
        network = make(3, rows_at_once=rows, attention_levels=(False, False)).eval()
        with torch.no_grad():
            peaks.append(peak_bytes(lambda net=network: net(images(4, 3, 16), steps()), torch.device("cpu")))
    assert peaks[1] < 0.75 * peaks[0]
