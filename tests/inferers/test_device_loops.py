# SPDX-License-Identifier: Apache-2.0
"""The loops of ControlCG, ILVR and DDIM inversion on a device other than the CPU: nothing crosses, nothing waits.

PyTorch's meta device stands for the accelerator: it computes shapes alone, refuses to be read, and takes part here in
no operation together with the CPU. So this needs no GPU, and tells where one would wait.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medcf.inferers import create_method
from medcf.inferers.ilvr import _Replace
from medcf.networks import AttentionInjection, ClassTokenUNet, Condition, Denoiser
from medcf.sampling import Chain, Hook, denoise, make_generators, standard_noise
from medcf.schedulers import RespacedDDIMScheduler, RespacedDDPMScheduler

DEVICE = torch.device("meta")
IDS = ["a", "b", "c"]
BAR = SimpleNamespace(update=lambda _count: None)


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, copies among them; a CPU scalar is an argument of a kernel."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(y) if isinstance(x, torch.Tensor)] for y in ((args, kwargs), result))
        devices = {x.device.type for x in [*(x for x in given if x.ndim or x.device == DEVICE), *made]}
        assert len(devices) <= 1, f"{func} crosses devices"
        return result


class Generator:
    """Stands for a generator of the device, which the meta device has none of."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)

    def manual_seed(self, _seed):
        return self


@pytest.fixture
def device(monkeypatch):
    """The device, with generators and autocast, and ``torch.tensor`` that tells when it would copy to it."""
    randn, tensor = torch.randn, torch.tensor

    def draw(*size, generator=None, device=None, **options):
        assert generator is None or generator.device == torch.device(device), "the generator is on another device"
        return randn(*size, device=device, **options)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "randn", draw)
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_options: nullcontext())

    def strict():
        def refuse(*args, **options):
            assert torch.device(options.get("device") or "cpu") != DEVICE, "the loop copied a list to the device"
            return tensor(*args, **options)

        monkeypatch.setattr(torch, "tensor", refuse)
        monkeypatch.setattr(torch, "as_tensor", refuse)
        return OneDevice()

    return strict


@pytest.fixture
def network():
    options = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
    net = ClassTokenUNet(3, 1, 1, cross_attention_dim=8, num_head_channels=4, patch_size=2, rows_at_once=1, **options)
    return net.eval().to(DEVICE)


@pytest.fixture
def volumes():
    return torch.zeros(3, 1, 8, 8, 8, device=DEVICE)


def make(name, solver=RespacedDDIMScheduler, **options):
    scheduler = solver(1000, prediction_type="v_prediction")
    options = {"num_inference_steps": 4, "progress": False, **options}
    return create_method(name, scheduler=scheduler, classifier=nn.Identity(), target=0, **options)


def chain_of(method, network, volumes):
    denoiser = Denoiser(network, method.scheduler, Condition(0, null=Condition(2), scale=3.0))
    denoiser(volumes, 0)  # makes its plan, once
    options = {"number": 0, "timesteps": method.timesteps, "denoiser": denoiser, "scheduler": method.scheduler}
    return Chain(start=volumes, original=volumes, ids=IDS, seeds=[0] * 3, level=None, **options)


@pytest.mark.parametrize("solver", [RespacedDDIMScheduler, RespacedDDPMScheduler])
@pytest.mark.parametrize("noise", ["fresh", "shared"])
@pytest.mark.parametrize(("condition", "scale"), [("same", 1.0), ("null", 0.5)])
def test_controlcg_stays_on_its_device(injected, device, network, volumes, solver, noise, condition, scale):
    method = make("controlcg", solver)
    generators = make_generators(0, IDS, DEVICE)
    with torch.no_grad():
        fixed = None if noise == "fresh" else standard_noise(volumes, generators)
        options = {"generators": generators, "noise": fixed, "injection": AttentionInjection(network, scale)}
        scales = [3.0, 1.0, 2.0]
        denoiser = injected(network, method.scheduler, [0, 1, 0], scales, volumes, condition=condition, **options)
        denoiser(volumes, 0)  # makes its plan, once
        with device():
            result = denoise(denoiser, method.scheduler, volumes, method.timesteps, generators=generators)
    assert result.device == DEVICE


@pytest.mark.parametrize(
    "options", [{}, {"reference_noise": "shared", "level": "published_code"}, {"lowpass": "interpolation"}]
)
def test_ilvr_stays_on_its_device(device, network, volumes, options):
    method = make("ilvr", **options)
    chain = chain_of(method, network, volumes)
    hook = _Replace(chain, method.options)
    with torch.no_grad(), device():
        result = chain.run([hook])
    assert result.device == DEVICE


def test_ddim_inversion_stays_on_its_device(device, network, volumes):
    method = make("ddim_inversion", inversion_iterations=2)
    denoiser = chain_of(method, network, volumes).denoiser
    with torch.no_grad(), device():
        noise = method._invert(denoiser, volumes, BAR)
        result = denoise(denoiser, method.scheduler, noise, method.timesteps)
    assert result.device == DEVICE


class Reading(Hook):
    def after_step(self, sample, step):
        return sample if bool(sample.sum() > 0) else -sample


class Crossing(Hook):
    def after_step(self, sample, step):
        return sample.cpu()


class Listing(Hook):
    def after_step(self, sample, step):
        return sample * torch.tensor([1.0], device=sample.device)


@pytest.mark.parametrize(
    ("hook", "message"), [(Reading, "meta"), (Crossing, "crosses|meta"), (Listing, "copied a list")]
)
def test_a_loop_that_would_wait_is_noticed(device, network, volumes, hook, message):
    method = make("ilvr")
    chain = chain_of(method, network, volumes)
    with torch.no_grad(), device(), pytest.raises((AssertionError, RuntimeError), match=message):
        chain.run([hook()])
