# SPDX-License-Identifier: Apache-2.0
"""The training of the identity network: batches of pairs, loss, validation, and that a short training learns."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import r2_score

from medcf.training.identity import (
    AutocastInferer,
    IdentityLoss,
    PairPrepareBatch,
    PairRecall,
    ParameterFit,
    RandVignetted,
)


def test_a_batch_holds_first_images_then_second_ones():
    batch = {"image": torch.zeros(2, 1, 4, 4), "image_pair": torch.ones(2, 1, 4, 4)}
    batch["parameters"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    images, target = PairPrepareBatch()(batch)
    assert images.flatten(1).mean(1).tolist() == [0, 0, 1, 1]
    assert target.tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]


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


def outputs(first, second, predicted, truth):
    embedding, values = torch.cat([first, second]), torch.cat([predicted, predicted])
    target = torch.cat([truth, truth])
    return [
        {"pred": {"embedding": e, "parameters": p}, "label": t}
        for e, p, t in zip(embedding, values, target, strict=True)
    ]


def test_recall_and_fit_over_batches():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(8, 3, generator=generator)
    predicted = truth + 0.3 * torch.randn(8, 3, generator=generator)
    first = torch.eye(8)
    second = first.clone()
    second[[0, 5]] = first[[5, 0]]  # two subjects are taken for each other
    recall, fit = PairRecall(), ParameterFit()
    for rows in (slice(0, 3), slice(3, 8)):
        batch = outputs(first[rows], second[rows], predicted[rows], truth[rows])
        for metric in (recall, fit):
            metric.iteration_completed(type("Engine", (), {"state": type("State", (), {"output": batch})})())
    assert recall.compute() == pytest.approx(6 / 8)
    assert fit.compute() == pytest.approx(r2_score(truth.numpy(), predicted.numpy()), abs=1e-6)


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


@pytest.mark.parametrize(("amp_dtype", "expected"), [("bfloat16", torch.bfloat16), (None, torch.float32)])
def test_the_inferer_computes_in_the_precision_asked_for(amp_dtype, expected):
    linear = torch.nn.Linear(3, 2)
    assert AutocastInferer(amp_dtype)(torch.ones(1, 3), linear).dtype == expected
