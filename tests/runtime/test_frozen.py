# SPDX-License-Identifier: Apache-2.0
"""Frozen networks: quiet inside, exactly as before outside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.runtime.frozen import frozen


def state(network):
    modes = [module.training for module in network.modules()]
    return modes, [parameter.requires_grad for parameter in network.parameters()]


def test_networks_come_back_as_they_were_even_after_an_error():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 2)))
    network.train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    before = state(network)
    inside = []

    def work():
        with frozen(network, None, len):
            inside.append(state(network))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert inside == [([False] * 5, [False] * 4)]
    assert state(network) == before
    assert before[0] == [True, True, False, False, False]


def test_gradients_still_reach_the_input():
    network = nn.Linear(2, 1)
    point = torch.ones(1, 2, requires_grad=True)
    with frozen(network):
        (gradient,) = torch.autograd.grad(network(point).sum(), point)
    torch.testing.assert_close(gradient, network.weight.detach())
