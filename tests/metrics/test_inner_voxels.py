# SPDX-License-Identifier: Apache-2.0
"""The descriptor of the inside."""

from __future__ import annotations

import pytest
import torch

from medcf.metrics import ReIdentification, pooled_pixels
from medcf.metrics.inner_voxels import InnerVoxels

SIZE = (20, 24, 20)


def subjects(seed: int, count: int = 12) -> torch.Tensor:
    """Smooth insides, and outlines of much greater contrast."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.nn.functional.interpolate(torch.rand(count, 1, 5, 6, 5, generator=generator), SIZE)
    return 0.2 * inside


def outlines(count: int = 12) -> torch.Tensor:
    rim = torch.ones(1, 1, *SIZE, dtype=torch.bool)
    rim[:, :, 3:-3, 3:-3, 3:-3] = False
    return torch.where(rim, 10 * subjects(7, count), torch.zeros(()))


def rank(describe, queries, gallery):
    metric = ReIdentification(1)
    metric(describe(queries), describe(gallery), subject=torch.arange(len(gallery)))
    return metric.aggregate()


def test_a_subject_is_known_by_its_inside_alone():
    gallery = subjects(0) + outlines()
    same_inside = subjects(0) + outlines().roll(1, 0)
    same_outline = subjects(0).roll(1, 0) + outlines()
    describe = InnerVoxels().features
    assert rank(describe, same_inside, gallery) == 1.0
    assert rank(describe, same_outline, gallery) == 0.0
    # The descriptor of the whole volume is deceived by the outline.
    assert rank(lambda images: pooled_pixels(images, (5, 6, 5)), same_outline, gallery) > 0.8


def test_every_voxel_inside_counts_and_none_outside():
    image = torch.zeros(1, 1, *SIZE, requires_grad=True)
    weights = torch.randn(InnerVoxels().features(image).shape, generator=torch.Generator().manual_seed(1))
    (InnerVoxels().features(image) * weights).sum().backward()
    touched = image.grad[0, 0] != 0
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SIZE], indexing="ij"))
    distance = (grid / torch.tensor([0.7, 0.72, 0.66]).reshape(3, 1, 1, 1)).square().sum(0)
    assert not touched[distance >= 1].any()
    assert touched[distance < 0.4].all()


def test_brightness_does_not_matter_and_images_in_2d_do():
    images = torch.rand(2, 1, 16, 18, generator=torch.Generator().manual_seed(2))
    describe = InnerVoxels((0.8, 0.8), block=1)
    torch.testing.assert_close(describe(images + 0.3), describe(images))


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="2 axes, but radius has 3"):
        InnerVoxels()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="is too small for a block"):
        InnerVoxels((0.1, 0.1, 0.1), block=4)(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="must be positive"):
        InnerVoxels(block=0)
