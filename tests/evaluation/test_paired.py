# SPDX-License-Identifier: Apache-2.0
"""The evaluation tells a true counterfactual from doing nothing and from one average image."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medcf.evaluation.paired import GroundTruthEvaluation, balanced_accuracies, evaluate

# A toy world: class 1 has a bright corner of four pixels; the rest of the image is the subject.
SIZE = (8, 10)


class Corner(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        score = image[:, 0, :2, :2].mean((1, 2))
        return torch.stack([-score, score], 1)


class Judge(nn.Module):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"quality": image[:, 0, :2, :2].mean((1, 2)).add(1).div(2)}


class Threshold(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-image, image], 1)


class Method:
    def __init__(self, change: Any) -> None:
        self.change = change

    def explain(self, image: Tensor, network: nn.Module, sample_ids: list[str]) -> SimpleNamespace:
        pred = self.change(image, sample_ids)
        return SimpleNamespace(
            image=pred,
            confidences=Corner()(pred).softmax(1)[:, 1:],
            num_function_evaluations=torch.full((len(image),), 3),
        )


def world(count: int = 12) -> list[dict[str, Any]]:
    image = torch.randn(count, 1, *SIZE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    image[:, :, :2, :2] = -0.9
    truth = image.clone()
    truth[:, :, :2, :2] = 0.9
    batch = {
        "image": image,
        "image_true": truth,
        "segmentation_true": (truth > 0).long(),
        "subject": torch.arange(count),
        "case": [f"case-{i}" for i in range(count)],
        "label": torch.zeros(count, dtype=torch.long),
    }
    return [{key: value[part] for key, value in batch.items()} for part in (slice(0, 5), slice(5, count))]


def measure(change: Any) -> dict[str, Any]:
    evaluation = GroundTruthEvaluation(
        inferer=Method(change),
        network=nn.Identity(),
        classifier=Corner(),
        oracle=Judge(),
        segmenter=Threshold(),
        embeddings={"image": lambda image: image.flatten(1)},
        structures={"bright": 1},
    )
    return evaluation.run(world())


def truth_of(image: Tensor, ids: list[str]) -> Tensor:
    pred = image.clone()
    pred[:, :, :2, :2] = 0.9
    return pred


def test_the_true_image_gets_full_marks() -> None:
    figures = measure(truth_of)
    assert figures["flip_ratio"] == 1
    assert figures["flips_entered"] == figures["cases"] == 12
    assert figures["oracle_mqd"] == pytest.approx(0.9)
    assert figures["dice_to_paired_truth"]["counterfactual"] == {"bright": 1.0}
    assert figures["dice_to_paired_truth"]["input"]["bright"] < 0.99
    assert figures["rank_3_reidentification"] == {"image": 1.0}
    assert figures["network_evaluations_per_case"] == 3


def test_doing_nothing_flips_nothing_and_gains_nothing() -> None:
    figures = measure(lambda image, ids: image)
    assert figures["flip_ratio"] == 0
    assert figures["oracle_mqd"] == 0
    scores = figures["dice_to_paired_truth"]
    assert scores["counterfactual"] == scores["input"]
    assert figures["mean_cosine_to_input"]["image"] == pytest.approx(1)


def test_one_memorized_image_flips_but_loses_the_subject() -> None:
    memorized = truth_of(world()[0]["image"], [])[:1]
    figures = measure(lambda image, ids: memorized.expand(len(image), -1, -1, -1))
    assert figures["flip_ratio"] == 1
    assert figures["rank_3_reidentification"]["image"] == pytest.approx(3 / 12)


def test_the_figures_and_every_case_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = GroundTruthEvaluation(
        Method(truth_of),
        nn.Identity(),
        Corner(),
        Judge(),
        Threshold(),
        {"image": lambda image: image.flatten(1)},
        {"bright": 1},
    )
    figures = evaluate(evaluation, world(), world(), 0.5, tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["case"] for row in written["per_case"]] == [f"case-{i}" for i in range(12)]
    assert written["per_case"][0]["quality_after"] == pytest.approx(0.95)
    assert json.loads(capsys.readouterr().out) == figures


def test_balanced_accuracy_is_that_of_the_judges_not_of_the_prevalence() -> None:
    batch = world()[0]
    image = torch.cat([batch["image"], batch["image_true"][:1]])
    labeled = [{"image": image, "label": torch.tensor([0, 0, 0, 0, 0, 1])}]
    assert balanced_accuracies(labeled, Corner(), Judge(), 0.5) == {"classifier": 1.0, "oracle": 1.0}
    assert balanced_accuracies(labeled, Corner(), Judge(), 2.0)["oracle"] == 0.5
