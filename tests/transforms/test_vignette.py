# SPDX-License-Identifier: Apache-2.0
"""The random vignette."""

from __future__ import annotations

import torch

from medcf.transforms.vignette import RandVignetted


def test_the_vignette_blackens_the_corners_and_keeps_the_middle():
    transform = RandVignetted(["image"], prob=1.0).set_random_state(0)
    image = torch.rand(1, 64, 80)
    changed = transform({"image": image, "subject": 3})
    assert changed["subject"] == 3
    result = changed["image"][0]
    assert all(result[row, column] == -1 for row in (0, 63) for column in (0, 79))
    torch.testing.assert_close(result[12:52, 16:64], image[0, 12:52, 16:64])
    assert image.min() >= 0  # the item that came in is not changed
    other = transform({"image": image})["image"][0]
    assert not torch.equal(other, result)
    assert torch.equal(RandVignetted("image", prob=0.0)({"image": image})["image"], image)


def test_all_images_of_an_item_get_the_same_ellipse_and_another_item_gets_another():
    transform = RandVignetted(["image", "image_true"], prob=1.0).set_random_state(0)
    item = {"image": torch.zeros(1, 64, 80), "image_true": torch.ones(1, 64, 80)}
    changed, other = transform(item), transform(item)
    black = changed["image"] == -1
    assert 0 < black.float().mean() < 0.5
    assert torch.equal(changed["image_true"] == -1, black)
    assert not torch.equal(other["image"] == -1, black)
