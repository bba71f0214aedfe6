# SPDX-License-Identifier: Apache-2.0
"""The oracle's loss."""

from __future__ import annotations

import pytest
import torch
from monai.losses import ContrastiveLoss, DiceCELoss

from medcf.training.losses import ConceptBottleneckLoss, IdentityLoss


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


def test_the_loss_is_that_of_simclr_plus_the_error_in_standard_deviations():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1)
    target = torch.zeros(6, 2)
    prediction = {"embedding": embedding, "parameters": torch.tensor([[8.0, 5.0]]).expand(6, 2)}
    logits = embedding @ embedding.T / 0.1
    logits.fill_diagonal_(-torch.inf)
    partner = torch.tensor([3, 4, 5, 0, 1, 2])
    expected = torch.nn.functional.cross_entropy(logits, partner) + 5 * (0.5 + 0.125) / 2
    loss = IdentityLoss(std=[8.0, 10.0], temperature=0.1)
    torch.testing.assert_close(loss(prediction, target), expected, atol=1e-5, rtol=1e-5)


def test_pairs_that_are_near_cost_less():
    loss = IdentityLoss(std=[1.0])
    eye = torch.eye(4)
    parameters = torch.zeros(8, 1)
    good = loss({"embedding": torch.cat([eye, eye]), "parameters": parameters}, parameters)
    bad = loss({"embedding": torch.cat([eye, eye.roll(1, 0)]), "parameters": parameters}, parameters)
    assert good < 0.01 < 5 < bad


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_without_parameters_the_loss_and_its_gradient_are_those_of_monai(temperature):
    first, second = (torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    embeddings = torch.cat([first, second]).requires_grad_()
    ours = IdentityLoss(temperature=temperature)({"embedding": embeddings}, torch.zeros(10, 0))
    theirs = ContrastiveLoss(temperature=temperature)(*embeddings.chunk(2))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
