# SPDX-License-Identifier: Apache-2.0
"""PerceptualFeatures: the right layers, no more work than needed, weights by path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.guidance import PerceptualFeatures


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(1, 4, 3), "act": nn.ReLU(), "second": nn.Conv2d(4, 2, 3), "flat": nn.Flatten()}
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network.eval()


IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_layers_come_in_the_order_they_were_named(extractor):
    second, first = PerceptualFeatures(extractor, ["second", "first"])(IMAGE)
    torch.testing.assert_close(first, extractor.first(IMAGE))
    torch.testing.assert_close(second, extractor.second(extractor.first(IMAGE).relu()))


def test_without_layers_the_output_is_the_feature(extractor):
    (output,) = PerceptualFeatures(extractor)(IMAGE)
    torch.testing.assert_close(output, extractor(IMAGE))


def test_forward_stops_at_the_last_layer_asked_for(extractor):
    ran = []
    extractor.second.register_forward_hook(lambda *_: ran.append("second"))
    PerceptualFeatures(extractor, "first")(IMAGE)
    assert not ran


def test_extractor_still_works_whole_afterwards(extractor):
    before = extractor(IMAGE)
    PerceptualFeatures(extractor, "first")(IMAGE)
    torch.testing.assert_close(extractor(IMAGE), before)
    with pytest.raises(RuntimeError):
        PerceptualFeatures(extractor, "second")(torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(extractor(IMAGE), before)


def test_gradient_reaches_the_image(extractor):
    point = IMAGE.clone().requires_grad_()
    (feature,) = PerceptualFeatures(extractor, "first")(point)
    (gradient,) = torch.autograd.grad(feature.pow(2).sum(), point)
    assert gradient.abs().sum() > 0


def test_single_channel_is_repeated_and_normalized():
    network = nn.Conv2d(3, 1, 1)
    (feature,) = PerceptualFeatures(network, num_channels=3, mean=(0.1, 0.2, 0.3), std=2.0)(IMAGE)
    wanted = network(torch.cat([(IMAGE - m) / 2 for m in (0.1, 0.2, 0.3)], dim=1))
    torch.testing.assert_close(feature, wanted)
    with pytest.raises(ValueError, match="num_channels=3"):
        PerceptualFeatures(network, num_channels=3)(torch.rand(1, 2, 8, 8))


def test_weights_are_loaded_by_path(extractor, tmp_path):
    state = {name: torch.full_like(value, 0.5) for name, value in extractor.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    features = PerceptualFeatures(extractor, "first", weights=tmp_path / "weights.pt")
    torch.testing.assert_close(features(IMAGE)[0][0, 0, 0, 0], 0.5 * IMAGE[0, 0, :3, :3].sum() + 0.5)


def test_wrong_weights_and_layers_say_what_to_do(extractor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        PerceptualFeatures(extractor, weights=tmp_path / "nothing.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="plain state dict"):
        PerceptualFeatures(extractor, weights=tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no layer 'frist'; there are first"):
        PerceptualFeatures(extractor, "frist")


def test_layer_outside_the_forward_is_reported(extractor):
    extractor.forward = lambda x: extractor.first(x)
    with pytest.raises(ValueError, match="second were not used"):
        PerceptualFeatures(extractor, "second")(IMAGE)
