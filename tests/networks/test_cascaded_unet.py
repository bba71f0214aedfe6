# SPDX-License-Identifier: Apache-2.0
"""The cascade: the fine net corrects what the coarse net says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medcf.networks.cascaded_unet import CascadedUNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return CascadedUNet(out_channels=3, channels=(4, 8, 8))


def test_evaluation_returns_the_fine_scores_alone(network):
    image = torch.randn(2, 1, 16, 24)
    fine, coarse = network(image)
    assert isinstance(network.eval()(image), torch.Tensor)
    torch.testing.assert_close(network(image), fine)  # instance normalization: the mode does not change the scores
    assert not torch.allclose(fine, coarse)


def test_the_fine_scores_depend_on_the_coarse_probabilities(network):
    network.eval()
    image = torch.randn(1, 1, 16, 16)
    before = network(image)
    network.coarse.register_forward_hook(lambda module, inputs, scores: scores.flip(1))
    assert (network(image) - before).abs().max() > 1e-3


def test_the_loss_of_the_fine_scores_trains_the_coarse_net(network):
    fine, _ = network(torch.randn(1, 1, 16, 16))
    functional.cross_entropy(fine, torch.zeros(1, 16, 16, dtype=torch.long)).backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in network.coarse.parameters())
