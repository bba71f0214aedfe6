# SPDX-License-Identifier: Apache-2.0
"""How the trainings' metrics read the evaluators' outputs."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.metrics import DiceMetric
from sklearn.metrics import r2_score

from medcf.training.validation_metrics import (
    BalancedAccuracy,
    PairRecall,
    ParameterFit,
    class_decision,
    output_pair,
    quality_decision,
    segmentation_pair,
)


def test_balanced_accuracy_weighs_classes_not_cases():
    batches = [[{"pred": torch.tensor([1.0, 0.0]), "label": torch.tensor(label)} for label in (0, 0, 0, 1)]] * 2
    engine = Engine(lambda engine, batch: batch)
    BalancedAccuracy(class_decision).attach(engine, "balanced_accuracy")
    assert engine.run(batches).metrics["balanced_accuracy"] == pytest.approx(0.5)


def test_quality_decides_at_its_threshold():
    output = [
        {"pred": {"quality": torch.tensor(q)}, "label": {"label": torch.tensor(k)}} for q, k in ((0.7, 1), (0.8, 0))
    ]
    decisions, labels = quality_decision(0.75)(output)
    assert decisions.tolist() == [0, 1]
    assert labels.tolist() == [1, 0]


def test_output_pairs_are_vectors_of_one_output():
    output = [{"pred": {"quality": torch.tensor(0.5)}, "label": {"quality": torch.tensor(1)}}]
    predictions, targets = output_pair("quality")(output)
    assert predictions[0].tolist() == [0.5]
    assert targets[0].tolist() == [1.0]


@pytest.mark.parametrize("key", [None, "segmentation"])
def test_segmentations_are_compared_as_one_hot_masks(key):
    truth = torch.tensor([[[0, 1], [2, 2]]])
    scores = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 0]]), 3).permute(2, 0, 1).float()
    item = {"pred": scores, "label": truth}
    if key:
        item = {name: {key: value} for name, value in item.items()}
    predictions, targets = segmentation_pair(key)([item])
    dice = DiceMetric(reduction="none")(torch.stack(predictions), torch.stack(targets))
    torch.testing.assert_close(dice[0], torch.tensor([2 / 3, 1.0, 2 / 3]))


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
