# SPDX-License-Identifier: Apache-2.0
"""The side of a structure: which half of the organ, who counts, and chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medcf.metrics import Lateralized
from medcf.phantoms import FetalHead

LABEL = 3


def labels(*columns: int | None, size: tuple[int, ...] = (20, 30)) -> Tensor:
    """Label maps with a block of the label at the given columns of the last axis."""
    maps = torch.zeros(len(columns), 1, *size, dtype=torch.long)
    for case, column in enumerate(columns):
        if column is not None:
            maps[case, ..., 8:12, column : column + 3] = LABEL
    return maps


def test_the_side_is_that_of_the_organ_not_that_of_the_image() -> None:
    truth, found = labels(12), labels(6)
    organ = torch.zeros_like(truth, dtype=torch.bool)
    organ[..., :18] = True  # its middle is at 8.5, that of the image at 14.5
    metric, of_image = Lateralized(LABEL), Lateralized(LABEL)
    metric(found, truth, organ=organ)
    of_image(found, truth)
    assert metric.aggregate() == 0
    assert of_image.aggregate() == 1


def test_absent_structures_and_those_in_the_middle_have_no_side() -> None:
    metric = Lateralized(LABEL)
    metric(labels(20, 2, 20, None), labels(20, 20, None, 20))
    assert metric.counts().entered == 2
    assert metric.aggregate() == 0.5
    assert metric.left_out_cases() == {
        "the truth lacks the structure": [2],
        "the counterfactual lacks the structure": [3],
    }
    organ = torch.zeros_like(labels(20), dtype=torch.bool)
    organ[..., 6:14, 17:26] = True  # centered on the structure
    centered = Lateralized(LABEL)
    centered(labels(20), labels(20), organ=organ)
    assert centered.counts().left_out == {"the truth is in the middle": 1}


def test_an_axis_ignores_the_other_axes_in_volumes() -> None:
    truth, found = (torch.zeros(1, 1, 12, 12, 12, dtype=torch.long) for _ in range(2))
    truth[..., 8:, 5:7, 1:3] = LABEL  # right and low
    found[..., 8:, 5:7, 9:11] = LABEL  # right and high
    along_x, along_z = Lateralized(LABEL, axis=0), Lateralized(LABEL, axis=2)
    along_x(found, truth), along_z(found, truth)
    assert (along_x.aggregate(), along_z.aggregate()) == (1, 0)
    with pytest.raises(ValueError, match="3 spatial axes"):
        Lateralized(LABEL, axis=3)(found, truth)


def test_all_on_the_right_side_has_an_exact_interval_over_subjects() -> None:
    metric = Lateralized(LABEL)
    metric(labels(20, 20, 20, 2), labels(21, 21, 21, 1))
    low, high = metric.interval(groups=["a", "a", "b", "c"])
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 3))


def test_the_cavum_of_a_head_lies_on_the_side_it_faces() -> None:
    for seed in range(6):
        head = FetalHead(seed)
        sample = head.render(size=(64, 80), spacing=1.75)
        truth = torch.from_numpy(sample.segmentation.astype(int))[None, None]
        front = labels(60 if head.facing > 0 else 10, size=(64, 80))
        metric = Lateralized(LABEL)
        metric(front, truth, organ=truth > 0)
        assert metric.aggregate() == 1
        mirrored = Lateralized(LABEL)
        mirrored(truth.flip(-1), truth, organ=truth > 0)
        assert mirrored.aggregate() == 0
