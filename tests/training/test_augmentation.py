# SPDX-License-Identifier: Apache-2.0
"""Augmentation without metadata: the same values, and MONAI's switch as it was."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Compose, Lambdad, RandAdjustContrastd, RandAffined, RandFlipd

from medcf.training.augmentation import PlainCompose

TRANSFORMS = [
    RandFlipd("image", prob=0.5, spatial_axis=1),
    RandAffined("image", prob=1.0, rotate_range=0.3, translate_range=(2, 2), padding_mode="border"),
    RandAdjustContrastd("image", prob=1.0, gamma=(0.5, 2.0)),
]


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_monai_s_compose_and_metadata_is_gone(seed):
    image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(seed))
    plain, usual = (
        kind(TRANSFORMS).set_random_state(seed)({"image": image})["image"] for kind in (PlainCompose, Compose)
    )
    assert isinstance(usual, MetaTensor)
    assert not isinstance(plain, MetaTensor)
    torch.testing.assert_close(plain, usual.as_tensor())
    assert get_track_meta()


def test_the_switch_is_put_back_after_an_error():
    def fail(image: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises((RuntimeError, ValueError)):
        PlainCompose([Lambdad("image", fail)])({"image": torch.zeros(1, 2, 2)})
    assert get_track_meta()
