# SPDX-License-Identifier: Apache-2.0
"""f(x) = l(s(x), x): the segmenter is frozen, yet gradients pass through it."""

from __future__ import annotations

import pytest
import torch

from medcf.networks import CascadedUNet, SegmentationGuidedClassifier, SonoNet


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return SegmentationGuidedClassifier(
        CascadedUNet(out_channels=3, channels=(4, 8)), SonoNet(4, features=4, num_blocks=3)
    ).eval()


def test_the_segmenter_stays_frozen_and_in_evaluation_mode(classifier):
    classifier.train()
    assert classifier.predictor.training
    assert not any(module.training for module in classifier.segmenter.modules())
    assert not any(parameter.requires_grad for parameter in classifier.segmenter.parameters())
    before = {key: value.clone() for key, value in classifier.segmenter.state_dict().items()}
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.1)
    classifier(torch.randn(4, 1, 16, 16)).sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in classifier.segmenter.state_dict().items())


def test_the_predictor_sees_probabilities_then_the_image(classifier):
    image = torch.randn(2, 1, 16, 16)
    evidence = classifier.evidence(image)
    torch.testing.assert_close(evidence[:, :3].sum(dim=1), torch.ones(2, 16, 16))
    assert torch.equal(evidence[:, 3:], image)
    torch.testing.assert_close(classifier(image), classifier.predictor(evidence))
    torch.testing.assert_close(classifier.features(image), classifier.predictor.features(evidence))


def test_the_gradient_to_the_image_passes_through_the_segmenter(classifier):
    image = torch.randn(1, 1, 16, 16, requires_grad=True)
    (whole,) = torch.autograd.grad(classifier(image)[0, 1], image)
    probabilities = classifier.segmenter(image).softmax(dim=1).detach()
    (direct,) = torch.autograd.grad(classifier.predictor(torch.cat([probabilities, image], dim=1))[0, 1], image)
    assert (whole - direct).abs().max() > 1e-2 * whole.abs().max()
