# SPDX-License-Identifier: Apache-2.0
"""The benchmark of attention: a reference of the same image leaves its mark only where attention has weight."""

from __future__ import annotations

import pytest
import torch

from benchmarks.brain.attention import attention_losses
from medcf.networks import ClassTokenUNet
from medcf.schedulers import RespacedDDIMScheduler


def network(attention_init: float) -> ClassTokenUNet:
    torch.manual_seed(0)
    net = ClassTokenUNet(
        2,
        1,
        1,
        cross_attention_dim=8,
        attention_init=attention_init,
        channels=(8, 8),
        attention_levels=(False, True),
        num_res_blocks=1,
        norm_num_groups=4,
        num_head_channels=8,
    )
    with torch.no_grad():
        net.unet.out[2].conv.weight.normal_(std=0.5)
    return net.eval()


def test_attention_without_weight_makes_no_difference_and_with_weight_it_does() -> None:
    scheduler = RespacedDDIMScheduler(1000, schedule="linear_beta", prediction_type="v_prediction")
    image = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    label = torch.tensor([0, 1, 0])
    silent = attention_losses(network(0.0), scheduler, image, label, 300)
    assert all(value == pytest.approx(silent["alone"], rel=1e-5) for value in silent.values())
    heard = attention_losses(network(2.0), scheduler, image, label, 300)
    assert all(heard[name] != pytest.approx(heard["alone"], rel=1e-5) for name in list(heard)[1:])
    again = attention_losses(network(2.0), scheduler, image, label, 300)
    assert again == heard  # hooks are gone, the noise is the same
