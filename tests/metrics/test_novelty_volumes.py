# SPDX-License-Identifier: Apache-2.0
"""Novelty of volumes, whose classifier has no segmenter; and that of images, which is what it was to the bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet
from torch.nn.functional import adaptive_avg_pool2d

from medcf.metrics.novelty import NoveltyDetector, fit_novelty
from medcf.networks import pooled_features
from medcf.networks.segmentation_guided import SegmentationGuidedClassifier
from medcf.networks.sononet import SonoNet

SIZE = (20, 24, 20)


def volumes(count, seed):
    """Ellipsoids of varying extent, brighter below, a dark part in front; -1 around them."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    images = []
    for _ in range(count):
        a, b, c = rng.uniform(0.65, 0.85, 3)
        inside = (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1
        image = 0.2 - 0.3 * z - 0.5 * ((y - 0.4) ** 2 + x**2 + z**2 < 0.05) + rng.normal(0, 0.05, SIZE)
        images.append(np.where(inside, np.clip(image, -0.95, 1), -1))
    return torch.tensor(np.stack(images)[:, None], dtype=torch.float32)


def make_detector(state=None, seed=0, **options):
    torch.manual_seed(seed)
    network = DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1), bn_size=2).eval()
    return NoveltyDetector(network, state=state, **{"features": partial(pooled_features, network), **options})


@pytest.fixture(scope="module")
def detector():
    detector = make_detector()
    detector.state = fit_novelty(detector, volumes(200, 0).split(50), volumes(200, 1).split(50), quantile=0.99)
    return detector


def test_unseen_volumes_pass_and_the_views_are_told_apart(detector):
    scores = detector(volumes(200, 2))
    assert scores["out_of_distribution"].float().mean() < 0.04
    assert set(scores) == {
        "out_of_distribution", "novelty", "novelty_threshold", "novelty_features", "novelty_appearance",
    }  # fmt: skip
    larger = torch.maximum(scores["novelty_features"], scores["novelty_appearance"])
    torch.testing.assert_close(scores["novelty"], larger)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(4),
        lambda x: x.flip(3),
        lambda x: x.transpose(2, 4),
        lambda x: -x,
        lambda x: torch.where(x > -1, -x, x),
        lambda x: torch.full_like(x, -1.0),
        lambda x: torch.zeros_like(x),
        lambda x: torch.where(x > -1, 0.2, -1.0),
        lambda x: torch.where(x > -1, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), x),
        lambda x: torch.full_like(x, float("nan")),
    ],
    ids=["upside down", "front is back", "axes swapped", "negative", "negative brain", "black", "gray", "flat brain",
         "noise", "not a number"],
)  # fmt: skip
def test_anything_else_is_flagged(detector, change):
    assert bool(detector(change(volumes(5, 3)))["out_of_distribution"].all())


def test_gray_values_are_compared_within_the_brain_alone(detector):
    """Twice as wide a margin of -1 around the same brains changes no quantile."""
    image = volumes(3, 4)
    wide = torch.nn.functional.pad(image, (2, 2, 2, 2, 2, 2), value=-1.0)
    quantiles = [detector.views(each)["appearance"][:, 80:86] for each in (image, wide)]
    torch.testing.assert_close(*quantiles)
    assert float(quantiles[0].amin()) > -1
    expected = [torch.quantile(each[each > -1], torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95, 0.99])) for each in image]
    torch.testing.assert_close(quantiles[0], torch.stack(expected))


def test_shells_of_the_spectrum_see_how_fine_a_pattern_is_along_every_axis(detector):
    index = torch.arange(20.0)
    bands = []
    for axis in (2, 3, 4):
        wave = torch.sin(2 * torch.pi * index * 0.4).reshape([20 if n == axis else 1 for n in range(5)])
        bands.append(int(detector.views(wave.expand(1, 1, 20, 20, 20))["appearance"][0, 86:].argmax()))
    assert bands == [6, 6, 6]  # 0.4 of 0.5 cycles a voxel, in eight shells


def test_statistics_of_other_networks_and_other_views_are_refused(detector):
    make_detector(detector.state)
    with pytest.raises(ValueError, match=r"other weights.*calibrate.json"):
        make_detector(detector.state, seed=1)
    with pytest.raises(ValueError, match=r"lack anatomy.mean.*calibrate.json"):
        make_detector(detector.state, segmenter=lambda image: torch.cat([image, -image], 1))
    with pytest.raises(ValueError, match=r"hold anatomy.mean that.*calibrate.json"):
        make_detector(detector.state | {"anatomy.mean": torch.zeros(1)})


def test_feature_maps_are_refused_with_the_remedy():
    detector = make_detector(features=None)
    with pytest.raises(ValueError, match=r"\(B, F\).*pooled_features"):
        detector.views(volumes(1, 0))
    with pytest.raises(ValueError, match="0 training and 0 held-out images are too few"):
        fit_novelty(make_detector(), [], [])


def appearance_2d(image):
    """The first release's appearance of images."""
    plane = image[:, 0].float()
    blocks = adaptive_avg_pool2d(plane[:, None], (4, 5)).flatten(1)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    quantiles = plane.flatten(1).quantile(levels, dim=1).T
    height, width = plane.shape[1:]
    power = torch.fft.rfft2(plane - plane.mean((1, 2), keepdim=True), norm="ortho").abs().square()
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    ring = ((vertical.square() + horizontal.square()).sqrt() / 0.5 * 8).long().clamp(max=7)
    bands = [power[:, ring == band].mean(1) for band in range(8)]
    return torch.cat([blocks, quantiles, torch.stack(bands, 1).clamp_min(1e-6).log()], dim=1)


def anatomy_2d(logits):
    """The first release's anatomy of images."""
    probabilities = logits.float().softmax(1)
    height, width = logits.shape[2:]
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    area = probabilities.mean((2, 3))
    weight = (probabilities / probabilities.sum((2, 3), keepdim=True).clamp_min(1.0))[:, 1:2]
    center = [(weight * axis).sum((2, 3)) for axis in (rows, columns)]
    extent = [(weight * axis.square()).sum((2, 3)) for axis in (rows, columns)]
    sure = probabilities.amax(1).mean((1, 2))[:, None]
    return torch.cat([area.clamp_min(1e-4).log(), *center, *extent, sure], dim=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_views_of_images_are_what_they_were_to_the_bit(layout):
    torch.manual_seed(0)
    segmenter = torch.nn.Conv2d(1, 3, 3, padding=1).to(memory_format=layout).requires_grad_(False)
    classifier = SegmentationGuidedClassifier(segmenter, SonoNet(4, features=4, num_blocks=3)).eval()
    detector = NoveltyDetector(classifier, segmenter)
    image = (torch.rand(5, 1, 32, 44) * 2 - 1).contiguous(memory_format=layout)
    views = detector.views(image)
    with torch.no_grad():
        assert torch.equal(views["features"], classifier.features(image).clamp_min(0).sqrt())
    assert torch.equal(views["appearance"], appearance_2d(image))
    assert torch.equal(views["anatomy"], anatomy_2d(segmenter(image)))
    rows, columns = torch.linspace(0, 9, 32), torch.linspace(0, 9, 44)
    picture = torch.sin(rows)[:, None] * torch.sin(columns)[None]
    expected = torch.cat([vectors[0] for vectors in detector.views(picture[None, None]).values()])
    assert torch.equal(detector.probe([32, 44]), expected)
