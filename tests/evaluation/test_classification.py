# SPDX-License-Identifier: Apache-2.0
"""Scores of classifiers against scikit-learn and by hand; votes and ensembles on cases with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report
from torch import nn

from medcf.evaluation.classification import ClassifierReport, Predictions, class_scores, draw_confusion, predict
from medcf.evaluation.ensembles import deep_features, main, majority_vote, stacked


def predictions(probabilities, label=None, features=None) -> Predictions:
    values = np.asarray(probabilities, np.float32)
    label = np.zeros(len(values), np.int64) if label is None else np.asarray(label)
    return Predictions(values, values if features is None else np.asarray(features, np.float32), label)


def one_hot(classes: list[int], count: int = 3) -> np.ndarray:
    return np.eye(count)[classes]


def test_averages_are_weighted_as_in_scikit_learns_report():
    rng = np.random.default_rng(0)
    label, found = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    scores = class_scores(one_hot(found, 4), label)
    report = classification_report(label, found, output_dict=True)
    assert scores["accuracy"] == pytest.approx(report["accuracy"])
    for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert scores[ours] == pytest.approx(report["weighted avg"][theirs])
    assert scores["recall_by_class"] == pytest.approx([report[str(one)]["recall"] for one in range(4)])


def test_a_class_without_images_has_no_recall():
    scores = class_scores(one_hot([0, 1, 2]), np.array([0, 1, 1]))
    assert scores["recall_by_class"][:2] == [1.0, 0.5]
    assert np.isnan(scores["recall_by_class"][2])


def test_the_majority_decides_and_the_mean_probability_only_where_votes_are_equal():
    sure = predictions([[0.99, 0.01, 0.0], [0.9, 0.1, 0.0]])
    two = [predictions([[0.4, 0.6, 0.0], [0.45, 0.55, 0.0]]) for _ in range(2)]
    assert majority_vote([sure, *two]).argmax(1).tolist() == [1, 1]  # two votes against one, however sure
    assert majority_vote([sure, two[0]]).argmax(1).tolist() == [0, 0]  # one against one


@pytest.mark.parametrize("combine", [stacked, deep_features])
def test_a_learner_on_top_finds_what_no_member_says(combine):
    """Each of two classifiers tells one bit of the class: together they tell all four."""
    rng = np.random.default_rng(1)
    known, tested = rng.integers(0, 4, 400), rng.integers(0, 4, 200)

    def member(label: np.ndarray, bit: int) -> Predictions:
        value = (label >> bit) & 1
        shares = np.stack([1 - value, value, 0 * value, 0 * value], 1) * 0.8 + 0.05
        return predictions(shares + rng.normal(0, 0.01, shares.shape), label)

    found = combine([member(known, bit) for bit in (0, 1)], [member(tested, bit) for bit in (0, 1)])
    assert (found.argmax(1) == tested).mean() == 1.0
    assert (member(tested, 0).probabilities.argmax(1) == tested).mean() < 0.7


class Classifier(nn.Module):
    """Knows the class by the sign of the mean; its features are the mean and its square."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.head.weight = nn.Parameter(torch.tensor([[-5.0, 0.0], [5.0, 0.0]]))
        self.head.bias = nn.Parameter(torch.zeros(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return self.head(torch.stack([mean, mean**2], 1))


def items(values: list[float], labels: list[int]) -> list[dict]:
    return [
        {"image": torch.full((1, 4, 4), value), "label": torch.tensor(label)}
        for value, label in zip(values, labels, strict=True)
    ]


def test_predictions_hold_what_the_last_layer_gets():
    network = Classifier().train()
    found = predict(network, items([-0.5, 0.25, 1.0], [0, 1, 1]), batch_size=2)
    np.testing.assert_allclose(found.features, [[-0.5, 0.25], [0.25, 0.0625], [1.0, 1.0]], rtol=1e-6)
    logits = np.asarray([[2.5, -2.5], [-1.25, 1.25], [-5.0, 5.0]])
    np.testing.assert_allclose(found.probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)
    assert not network.head._forward_pre_hooks
    assert found.label.tolist() == [0, 1, 1]


def test_a_report_writes_scores_predictions_and_the_matrix(tmp_path: Path, capsys):
    sets = {"val": items([-1.0, 1.0], [0, 1]), "test": items([-0.5, 0.25, 1.0, -1.0], [0, 1, 1, 1])}
    ClassifierReport(Classifier(), sets, tmp_path, ["Abdomen", "Brain"], {"regime": "real"}).run()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["confusion"] == [[1, 0], [1, 2]]
    assert (scores["accuracy"], scores["regime"], scores["images"]) == (0.75, "real", 4)
    assert "real: 0.750 accuracy of 4 test images" in capsys.readouterr().out
    assert Predictions.load(tmp_path / "val.npz").label.tolist() == [0, 1]
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 200


def test_matrices_are_drawn_side_by_side(tmp_path: Path):
    draw_confusion(tmp_path / "a.png", {"one": np.eye(2)}, "ab")
    draw_confusion(tmp_path / "b.png", dict.fromkeys("xyzv", np.eye(2)), "ab")
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as four:
        assert (four.width, four.height) == (3 * one.width, 2 * one.height)


def test_runs_are_combined_on_the_command_line(tmp_path: Path, capsys):
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 60)
    for run, wrong in (("a", 0), ("b", 20), ("c", 40)):  # each is wrong about other images
        found = label.copy()
        found[wrong : wrong + 15] = (label[wrong : wrong + 15] + 1) % 3
        for name in ("val", "test"):
            (tmp_path / run).mkdir(exist_ok=True)
            predictions(one_hot(found.tolist()) * 0.8 + 0.1, label).save(tmp_path / run / f"{name}.npz")
    runs = [str(tmp_path / run) for run in "abc"]
    main(runs)
    told = capsys.readouterr().out
    assert f"{tmp_path / 'b'}: accuracy 0.750" in told
    assert "majority vote: accuracy 1.000, precision 1.000" in told
    assert "stacked: accuracy 1.000" in told
    predictions(one_hot([0, 1]), [0, 1]).save(tmp_path / "c" / "test.npz")
    with pytest.raises(SystemExit):
        main(runs)
    assert "tested on other images" in capsys.readouterr().err
    (tmp_path / "c" / "val.npz").unlink()
    with pytest.raises(SystemExit):
        main(runs)
    assert "is missing: a training that tests its classifier writes it" in capsys.readouterr().err
