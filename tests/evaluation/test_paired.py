# SPDX-License-Identifier: Apache-2.0
"""The evaluation tells a true counterfactual from doing nothing and from one average image."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medcf.evaluation import Evaluation, run_evaluation
from medcf.metrics import CaseMetric
from medcf.registry import METRICS as METRICS_STORE

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
            target=torch.ones(len(image), dtype=torch.long),
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


NETWORKS = {"logits": Corner(), "oracle": Judge(), "segmenter": Threshold(), "flat": lambda image: image.flatten(1)}
CANDIDATES = {"input": "image", "counterfactual": "pred", "truth": "image_true"}
METRICS = {
    "flip_ratio": "flip_ratio",
    "flips_entered": {"name": "flip_ratio", "read": "entered"},
    "oracle_mqd": "mean_quality_difference",
    "rank_3_reidentification": {"name": "re_identification", "of": ["flat"], "rows": {"reidentified_by_{of}": "hits"}},
    "mean_cosine_to_input": {"name": "feature_cosine", "of": ["flat"]},
    "dice_to_paired_truth": {"name": "structure_dice", "structures": {"bright": 1}, "on": CANDIDATES},
    "survival": {"name": "flip_survival", "classifier": Corner(), "names": ["blur", "noise"], "read": "by_disturbance"},
    "confidence_per_iterate": {"name": "mean", "of": "confidences", "read": "by_column"},
    "network_evaluations_per_case": {"name": "mean", "of": "num_function_evaluations"},
}


def evaluation(change: Any, **metrics: Any) -> Evaluation:
    rows = {"confidence_after": "confidence(pred)", "quality_after": "quality(pred)"}
    return Evaluation(metrics or METRICS, NETWORKS, rows, Method(change), nn.Identity())


def measure(change: Any) -> dict[str, Any]:
    return evaluation(change).run(world())


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
    assert figures["rank_3_reidentification"] == {"flat": 1.0}
    assert figures["network_evaluations_per_case"] == 3
    assert set(figures["survival"]) == {"blur", "noise", "all"}
    assert figures["confidence_per_iterate"] == pytest.approx([1 / (1 + math.exp(-1.8))])


def test_doing_nothing_flips_nothing_and_gains_nothing() -> None:
    figures = measure(lambda image, ids: image)
    assert figures["flip_ratio"] == 0
    assert figures["oracle_mqd"] == 0
    scores = figures["dice_to_paired_truth"]
    assert scores["counterfactual"] == scores["input"]
    assert figures["mean_cosine_to_input"]["flat"] == pytest.approx(1)


def test_one_memorized_image_flips_but_loses_the_subject() -> None:
    memorized = truth_of(world()[0]["image"], [])[:1]
    figures = measure(lambda image, ids: memorized.expand(len(image), -1, -1, -1))
    assert figures["flip_ratio"] == 1
    assert figures["rank_3_reidentification"]["flat"] == pytest.approx(3 / 12)


def test_the_figures_and_every_case_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judges = Evaluation({"judged": {"name": "balanced_accuracy", "of": "quality(image)", "threshold": 0.5}}, NETWORKS)
    figures = run_evaluation(evaluation(truth_of), world(), tmp_path, further=[(judges, world())])
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["case"] for row in written["per_case"]] == [f"case-{i}" for i in range(12)]
    assert written["per_case"][0]["quality_after"] == pytest.approx(0.95)
    assert written["per_case"][0]["reidentified_by_flat"] is True
    assert written["judged"] == 1.0
    assert json.loads(capsys.readouterr().out) == figures


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("flip_rate", "'flip_rate' is not one of the registered metrics: .*flip_ratio"),
        ("re_identification", r"mine: the metric 're_identification' needs .*'embedding\(pred\)' is absent; .*logits"),
        (
            {"name": "volume_change", "of": "gm"},
            r"mine: the metric 'volume_change' needs .*'volumes\(pred\)' is absent",
        ),
        ({"name": "flip_ratio", "goal": 1}, "mine: correct the options of the metric 'flip_ratio': .*'goal'"),
        ({"k": 3}, "mine: give the name of a metric"),
    ],
)
def test_what_a_metric_lacks_is_named(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(truth_of, mine=entry).run(world())


def test_a_metric_of_a_plugin_is_measured_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Corners(CaseMetric):
        """How bright the corner is."""

        higher_is_better = True

        def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
            return y_pred[:, 0, 0, 0] - y[:, 0, 0, 0]

    monkeypatch.setattr(METRICS_STORE, "components", {**METRICS_STORE.components})
    METRICS_STORE.add("corners", "how bright the corner is", Corners)
    found = evaluation(truth_of, mine={"name": "corners", "interval": True}).run(world())["mine"]
    assert found == {"mean": pytest.approx(1.8), "interval": [pytest.approx(1.8)] * 2, "cases": 12}
