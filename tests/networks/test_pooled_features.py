# SPDX-License-Identifier: Apache-2.0
"""Pooled features of MONAI's DenseNet."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet

from medcf.guidance import PerceptualFeatures
from medcf.metrics import FrechetDistance
from medcf.networks.pooled_features import pooled_features


@pytest.fixture(params=[2, 3])
def network(request):
    torch.manual_seed(0)
    return DenseNet(request.param, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2).eval()


def images(network, count=6):
    dims = 3 if isinstance(network.features.conv0, torch.nn.Conv3d) else 2
    return torch.randn(count, 1, *[20, 16, 24][:dims], generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_class_scores_are_linear_in_the_features(network):
    batch = images(network)
    features = pooled_features(network, batch)
    torch.testing.assert_close(network.class_layers.out(features), network(batch))
    assert (features >= 0).all()


@torch.no_grad()
def test_the_layer_has_a_name(network):
    batch = images(network)
    (named,) = PerceptualFeatures(network, "class_layers.flatten")(batch)
    torch.testing.assert_close(named, pooled_features(network, batch))


@torch.no_grad()
def test_a_frechet_distance_on_them_sees_another_set(network):
    batch = images(network, 40)
    features = pooled_features(network, batch)
    same, other = FrechetDistance("densenet", reference=features), FrechetDistance("densenet", reference=features)
    same(features)
    other(pooled_features(network, batch * 3 + 2))
    assert same.aggregate() == pytest.approx(0.0, abs=1e-6)
    assert other.aggregate() > 10 * abs(same.aggregate()) + 1e-3
