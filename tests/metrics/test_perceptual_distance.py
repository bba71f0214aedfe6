# SPDX-License-Identifier: Apache-2.0
"""LPIPS-style distance against the formula written out in numpy, and on images that have lost their input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medcf.guidance import PerceptualFeatures
from medcf.metrics.perceptual_distance import PerceptualDistance
from medcf.phantoms import PhantomDataset


def network(dims=2):
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    torch.manual_seed(0)
    return nn.Sequential(conv(1, 6, 3), nn.ReLU(), conv(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten())


def by_hand(layers_a, layers_b, weights):
    """Zhang et al., eq. 1, place by place."""
    total = 0.0
    for a, b, weight in zip(layers_a, layers_b, weights, strict=True):
        places = []
        for place in np.ndindex(a.shape[1:]):
            unit_a, unit_b = (
                each[(slice(None), *place)] / np.linalg.norm(each[(slice(None), *place)]) for each in (a, b)
            )
            places.append(np.sum(weight * (unit_a - unit_b) ** 2))
        total += np.mean(places)
    return total


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_formula_written_out(dims: int, weighted: bool) -> None:
    size = (11, 9) if dims == 2 else (9, 7, 8)
    images = torch.rand(2, 3, 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    extractor = PerceptualFeatures(network(dims), ["0", "2", "4"])
    channel = torch.linspace(0, 2, 8)
    weights = [0.5, channel, 0.25] if weighted else None
    metric = PerceptualDistance(extractor, weights)
    metric(images[0, :2], images[1, :2])
    metric(images[0, 2:], images[1, 2:])
    with torch.no_grad():
        layers = [[layer.double().numpy() for layer in extractor(each)] for each in images]
    for case in range(3):
        a, b = ([layer[case] for layer in each] for each in layers)
        expected = by_hand(a, b, [0.5, channel.numpy(), 0.25] if weighted else [1, 1, 1])
        if case == 0:
            assert expected > 0.05
        assert float(metric.per_case()[case]) == pytest.approx(expected, rel=1e-5)


def test_without_weights_each_layer_is_twice_one_minus_the_cosine() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(4, 16, generator=generator), torch.randn(4, 16, generator=generator)
    metric = PerceptualDistance(lambda features: [features])
    metric(a, b)
    expected = 2 - 2 * torch.cosine_similarity(a, b)
    assert metric.per_case().numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_brighter_activation_of_the_same_direction_costs_nothing() -> None:
    a = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(3))
    metric = PerceptualDistance(lambda features: [features])
    metric(3 * a, a)
    assert metric.aggregate() == pytest.approx(0, abs=1e-10)


def test_bad_counterfactuals_are_farther_from_their_input() -> None:
    heads = torch.stack([item["image"] for item in PhantomDataset(split="test", count=4, progress=False)])
    generator = torch.Generator().manual_seed(4)
    versions = {
        "unchanged": heads,
        "slight": heads + 0.02 * torch.randn(heads.shape, generator=generator),
        "average": heads.mean(0, keepdim=True).expand_as(heads),
        "constant": torch.zeros_like(heads),
        "noise": torch.rand(heads.shape, generator=generator) * 2 - 1,
    }
    found = {}
    for name, images in versions.items():
        metric = PerceptualDistance(PerceptualFeatures(network(), ["1", "3"]))
        metric(images, heads)
        found[name] = metric.aggregate()
    assert found["unchanged"] == 0
    assert 0 < found["slight"] < min(found["average"], found["constant"], found["noise"])


def test_broken_images_are_left_out_and_mistakes_named() -> None:
    extractor = PerceptualFeatures(network(), ["0", "2"])
    images = torch.rand(3, 1, 12, 12)
    broken = images.clone()
    broken[1] = torch.nan
    metric = PerceptualDistance(extractor)
    metric(broken, images)
    assert metric.counts().left_out == {"activations are not finite": 1}
    assert metric.aggregate() == 0
    with pytest.raises(ValueError, match="1 entries, but the features have 2 layers"):
        PerceptualDistance(extractor, [1.0])(images, images)
    with pytest.raises(ValueError, match="3 values, but the layer has 6 channels"):
        PerceptualDistance(extractor, [[1.0, 1.0, 1.0], 1.0])(images, images)
    with pytest.raises(ValueError, match="none negative"):
        PerceptualDistance(extractor, [1.0, -1.0])
    with pytest.raises(ValueError, match="as y"):
        PerceptualDistance(extractor)(images)
