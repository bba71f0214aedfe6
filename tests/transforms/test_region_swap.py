# SPDX-License-Identifier: Apache-2.0
"""Two states of a subject mixed region by region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.transforms.region_swap import RandRegionSwapd

SIZE = (16, 18, 20)


@pytest.fixture
def item():
    """Structures 4 and 5 far apart, larger in the second state; gray values say which state a voxel is from."""
    labels = [torch.ones(1, *SIZE, dtype=torch.int64) for _ in range(2)]
    for state, radius in zip(labels, (1, 2), strict=True):
        state[:, 4 - radius : 4 + radius, 4 - radius : 4 + radius, 4 - radius : 4 + radius] = 4
        state[:, 11 - radius : 11 + radius, 13 - radius : 13 + radius, 14 - radius : 14 + radius] = 5
    return {
        "image": torch.zeros(1, *SIZE),
        "image_true": torch.ones(1, *SIZE),
        "segmentation": labels[0],
        "segmentation_true": labels[1],
        "case": "a",
    }


def drawn(item, count=200, **options):
    transform = RandRegionSwapd(**options).set_random_state(seed=0)
    return [transform(item) for _ in range(count)]


def test_image_and_segmentation_come_from_the_same_state_everywhere(item):
    for mixed in drawn(item, 40):
        assert mixed.keys() == {"image", "segmentation", "case"}
        expected = torch.where(mixed["image"] == 1, item["segmentation_true"], item["segmentation"])
        assert torch.equal(mixed["segmentation"], expected)


def test_the_states_of_the_structures_are_independent(item):
    mixed = drawn(item, box=(0.0, 0.0))
    states = np.array([[float(m["image"][0, 4, 4, 4]), float(m["image"][0, 11, 13, 14])] for m in mixed])
    assert states.mean(0) == pytest.approx([0.5, 0.5], abs=0.1)
    assert abs(np.corrcoef(states.T)[0, 1]) < 0.2


def test_a_structure_is_never_torn(item):
    for mixed in drawn(item, 40, margin=(1, 1)):
        for label in (4, 5):
            both = (item["segmentation"] == label) | (item["segmentation_true"] == label)
            assert len(mixed["image"][both].unique()) == 1


def test_without_swaps_an_item_is_one_state_or_the_other(item):
    kinds = {float(mixed["image"].mean()) for mixed in drawn(item, 40, prob=0.0)}
    assert kinds == {0.0, 1.0}
    assert len(item) == 5  # what went in is as it was


def test_a_seed_gives_the_same_mixture(item):
    first, second = drawn(item, 5), drawn(item, 5)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def test_images_in_2d_are_mixed_too(item):
    flat = {key: value[..., 4] if torch.is_tensor(value) else value for key, value in item.items()}
    assert {float(mixed["image"][0, 4, 4]) for mixed in drawn(flat, 40)} == {0.0, 1.0}


def test_an_image_needs_its_segmentation():
    with pytest.raises(ValueError, match="image and its segmentation"):
        RandRegionSwapd(keys=["image"])
