# SPDX-License-Identifier: Apache-2.0
"""The oracle's loss."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from medcf.training.losses import ConceptBottleneckLoss


@pytest.fixture
def case():
    torch.manual_seed(0)
    prediction = {"segmentation": torch.randn(2, 3, 8, 8), "concepts": torch.rand(2, 4), "quality": torch.rand(2)}
    target = {"segmentation": torch.randint(3, (2, 1, 8, 8)), "concepts": torch.rand(2, 4), "quality": torch.rand(2)}
    return prediction, target


def test_the_loss_is_the_weighted_sum_of_its_terms(case):
    prediction, target = case
    expected = (
        2.0 * DiceCELoss(to_onehot_y=True, softmax=True)(prediction["segmentation"], target["segmentation"])
        + 3.0 * ((prediction["concepts"] - target["concepts"]) ** 2).mean()
        + 4.0 * ((prediction["quality"] - target["quality"]) ** 2).mean()
    )
    torch.testing.assert_close(ConceptBottleneckLoss(2.0, 3.0, 4.0)(prediction, target), expected)


@pytest.mark.parametrize("index", range(3))
def test_a_weight_of_zero_switches_a_term_off(case, index):
    prediction, target = case
    key = ("segmentation", "concepts", "quality")[index]
    weights = [1.0, 1.0, 1.0]
    weights[index] = 0.0
    loss = ConceptBottleneckLoss(*weights)
    changed = {**prediction, key: prediction[key] + torch.randn_like(prediction[key])}
    torch.testing.assert_close(loss(prediction, target), loss(changed, target))
