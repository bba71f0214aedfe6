# SPDX-License-Identifier: Apache-2.0
"""Options that make a network faster leave what it computes, and say so when they cannot work."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from medcf.runtime import performance
from medcf.runtime.performance import accelerate, autocast, half_precision


def make_net(spatial_dims: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return UNet(spatial_dims, 1, 1, channels=(4, 8), strides=(2,)).eval().requires_grad_(False)


def test_the_defaults_change_nothing():
    network = make_net()
    strides = [parameter.stride() for parameter in network.parameters()]
    assert accelerate(network) is network
    assert [parameter.stride() for parameter in network.parameters()] == strides
    assert "forward" not in vars(network)


@pytest.mark.parametrize(("spatial_dims", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_reaches_the_weights_and_keeps_the_result(spatial_dims, memory_format):
    image = torch.randn(2, 1, *[8] * spatial_dims)
    expected = make_net(spatial_dims)(image)
    network = accelerate(make_net(spatial_dims), channels_last=True)
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    assert all(kernel.is_contiguous(memory_format=memory_format) for kernel in kernels)
    assert any(not kernel.is_contiguous() for kernel in kernels)
    torch.testing.assert_close(network(image), expected)


def test_activations_follow_the_weights():
    network = accelerate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), channels_last=True)
    result = network(torch.randn(2, 3, 8, 8))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert not result.is_contiguous()


def test_compile_keeps_names_and_results_and_takes_a_mode(monkeypatch):
    asked = []

    def compiler(function, mode):
        asked.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    network, image = make_net(), torch.randn(1, 1, 8, 8)
    expected, names = network(image), list(network.state_dict())
    assert accelerate(network, compile=True) is network
    assert torch.equal(accelerate(make_net(), compile="max-autotune")(image), expected)
    assert asked == [None, "max-autotune"]
    assert list(network.state_dict()) == names


def test_a_failing_compiler_is_left_alone_after_one_warning(monkeypatch, caplog):
    def broken(graph, inputs):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "compile", lambda function, mode, real=torch.compile: real(function, backend=broken))
    network, image = make_net(), torch.randn(1, 1, 8, 8)
    expected = network(image)
    accelerate(network, compile=True)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(network(image), expected)
        assert torch.equal(network(image), expected)
    assert caplog.text.count("no space left on device") == 1


def test_without_a_compiler_it_warns_and_runs_as_before(monkeypatch, caplog):
    monkeypatch.setattr(performance.shutil, "which", lambda name: None)
    network, image = make_net(), torch.randn(1, 1, 8, 8)
    expected = network(image)
    with caplog.at_level(logging.WARNING):
        accelerate(network, compile=True)
    assert "no C++ compiler" in caplog.text
    assert "forward" not in vars(network)
    assert torch.equal(network(image), expected)


def test_autocast_computes_in_16_bits_and_can_be_off():
    network, image = make_net(), torch.randn(1, 1, 8, 8)
    assert half_precision("cpu") == torch.bfloat16
    with autocast("cpu"):
        assert network(image).dtype == torch.bfloat16
    with autocast("cpu", enabled=False):
        assert network(image).dtype == torch.float32


def test_gpus_without_bfloat16_get_float16(monkeypatch):
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, value=supported: value)
        assert half_precision("cuda") == expected


def test_auto_takes_16_bits_only_where_the_processor_has_them(monkeypatch):
    layer, image = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        with autocast("cpu", enabled="auto"):
            assert layer(image).dtype == expected
    with pytest.raises(ValueError, match="amp='yes'"):
        autocast("cpu", enabled="yes")
