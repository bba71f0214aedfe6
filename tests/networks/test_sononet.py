# SPDX-License-Identifier: Apache-2.0
"""SonoNet: its features, its blocks, its scale."""

from __future__ import annotations

import pytest
import torch

from medcf.networks import SonoNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SonoNet(2, num_classes=3, features=4).eval()


def test_scores_are_a_linear_function_of_the_features(network):
    image = torch.randn(5, 2, 32, 48)
    expected = network.features(image) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(image), expected)
    assert network.features(image).shape == (5, network.num_features)


def test_mean_of_class_maps_equals_the_scores_of_the_mean_features(network):
    """The published order: a 1x1 convolution to class maps first, then the mean over space."""
    image = torch.randn(2, 2, 32, 48)
    maps = network.adaption(network.feature_maps(image)[-1])
    class_maps = torch.einsum("kf,bfhw->bkhw", network.head.weight, maps) + network.head.bias[:, None, None]
    torch.testing.assert_close(network(image), class_maps.mean(dim=(2, 3)))


def test_every_block_halves_the_maps_and_widens_as_published():
    maps = SonoNet(1, features=4).eval().feature_maps(torch.randn(1, 1, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 64, 96), (8, 32, 48), (16, 16, 24), (32, 8, 12), (32, 4, 6)]


def test_max_features_and_num_blocks_limit_the_network():
    maps = SonoNet(1, features=4, num_blocks=4, max_features=10).eval().feature_maps(torch.randn(1, 1, 32, 32))
    assert [m.shape[1] for m in maps] == [4, 8, 10, 10]


def test_a_dimension_of_one_pixel_is_no_longer_pooled():
    assert SonoNet(1, features=2).eval()(torch.randn(1, 1, 4, 64)).isfinite().all()


def test_volumes_are_classified_too():
    assert SonoNet(1, features=2, spatial_dims=3, num_blocks=3).eval()(torch.randn(2, 1, 8, 8, 8)).shape == (2, 2)


def test_the_gradient_reaches_every_pixel(network):
    image = torch.randn(1, 2, 16, 16, requires_grad=True)
    network(image)[0, 1].backward()
    assert (image.grad != 0).all()


def test_a_sixth_block_is_refused():
    with pytest.raises(ValueError, match="num_blocks is 6"):
        SonoNet(1, num_blocks=6)
