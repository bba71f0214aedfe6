# SPDX-License-Identifier: Apache-2.0
"""The oracle: quality depends on the concepts alone, and rises with each."""

from __future__ import annotations

import pytest
import torch

from medcf.networks import ConceptBottleneck


@pytest.fixture
def oracle():
    torch.manual_seed(0)
    return ConceptBottleneck(5, num_segments=3, channels=(4, 8), features=4, num_blocks=3).eval()


def test_quality_depends_on_the_concepts_alone(oracle):
    first, second = torch.randn(2, 1, 1, 16, 16)
    fixed = torch.rand(1, 5).logit()
    oracle.encoder.forward = lambda _: fixed
    assert not torch.allclose(oracle(first)["segmentation"], oracle(second)["segmentation"])
    assert torch.equal(oracle(first)["quality"], oracle(second)["quality"])


def test_a_better_concept_never_lowers_the_quality(oracle):
    torch.manual_seed(1)
    for parameter in oracle.quality.parameters():
        torch.nn.init.normal_(parameter, std=3.0)  # whatever training did to the weights
    concepts = torch.rand(500, 5)
    better = (concepts + 0.2 * torch.nn.functional.one_hot(torch.randint(5, (500,)), 5)).clamp(max=1)
    assert (oracle.quality(better) >= oracle.quality(concepts)).all()
    assert oracle.quality(torch.ones(1, 5)) > oracle.quality(torch.zeros(1, 5))


def test_concepts_and_quality_are_scores(oracle):
    result = oracle(torch.randn(3, 1, 16, 24))
    assert result["segmentation"].shape == (3, 3, 16, 24)
    assert result["concepts"].shape == (3, 5)
    assert result["quality"].shape == (3,)
    for key in ("concepts", "quality"):
        assert ((result[key] > 0) & (result[key] < 1)).all()


def test_concepts_see_the_segmentation(oracle):
    image = torch.randn(1, 1, 16, 16)
    before = oracle(image)["concepts"]
    features = oracle.features(image)
    torch.testing.assert_close(torch.sigmoid(oracle.encoder.head(features)), before)
    for parameter in oracle.segmenter.parameters():
        parameter.data.mul_(-1.0)
    assert not torch.allclose(oracle(image)["concepts"], before)
