# SPDX-License-Identifier: Apache-2.0
"""The evaluation on labeled images tells a change of class from doing nothing and from another subject."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from medcf.bundle import bundle_folder
from medcf.evaluation import Evaluation, run_evaluation
from medcf.metrics import bootstrap_interval

# A toy world: the subject is a pattern in [0, 0.5]; the upper half is 0.5 brighter in class 1; outside is -1.
SIZE = (12, 14, 16)
INSIDE = (slice(1, -1),) * 3


def draw(subject: int, label: int) -> Tensor:
    pattern = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(subject)) / 2
    pattern[..., 8:] += label / 2
    volume = torch.full_like(pattern, -1.0)
    volume[(..., *INSIDE)] = pattern[(..., *INSIDE)]
    return volume[0]


def classify(image: Tensor) -> Tensor:
    bright = (image[(..., *INSIDE)][..., 7:].flatten(1).mean(1) - 0.5) * 20
    return torch.stack([-bright, bright], 1)


def features(image: Tensor) -> Tensor:
    halves = image[(..., *INSIDE)].flatten(1, 4).unflatten(1, (-1, 14))
    return torch.stack([halves[..., 7:].mean((1, 2)), halves[..., :7].mean((1, 2))], 1)


class Method:
    """Explains towards the class that is not predicted, by ``change(subject, label)``."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def explain(self, image: Tensor, network: Any, sample_ids: list[str]) -> SimpleNamespace:
        target = 1 - classify(image).argmax(1)
        drawn = [self.change(int(case), int(label)) for case, label in zip(sample_ids, target, strict=True)]
        return SimpleNamespace(image=torch.stack(drawn), target=target)


def loader(count: int = 24) -> list[dict[str, Any]]:
    items = [{"image": draw(i, i % 2), "label": i % 2, "subject": f"s{i}", "case": str(i)} for i in range(count)]
    parts = [items[:10], items[10:]]
    return [
        {
            "image": torch.stack([item["image"] for item in part]),
            "label": torch.tensor([item["label"] for item in part]),
            **{key: [item[key] for item in part] for key in ("subject", "case")},
        }
        for part in parts
    ]


def flat(image: Tensor) -> Tensor:
    return image[(..., *INSIDE)][..., :6].flatten(1) - 0.25


def evaluation(change: Any) -> Evaluation:
    """Evaluate by what the bundle's overlay lists."""
    config = ConfigParser.load_config_file(f"{bundle_folder('controlcg')}/configs/evaluate_labeled.json")
    metrics = config["metrics"] | {"set_distances": {"name": "class_distances", "class_names": ["CN", "AD"]}}
    return Evaluation(
        metrics,
        {"logits": classify, "features": features, "pooled_voxels": flat},
        config["evaluation"]["rows"],
        Method(change),  # type: ignore[arg-type]
        torch.nn.Identity(),
        target_names=["to_CN", "to_AD"],
    )


def test_the_true_change_flips_keeps_the_subject_and_meets_the_other_class():
    figures = evaluation(draw).run(loader())
    assert figures["cases"] == figures["subjects"] == 24
    assert figures["classifier_balanced_accuracy"] == 1.0
    twelve_of_twelve = {"mean": 1.0, "interval": pytest.approx([0.025 ** (1 / 12), 1.0]), "cases": 12}
    assert figures["flipped"] == {"to_CN": twelve_of_twelve, "to_AD": twelve_of_twelve}
    assert figures["confidence_before"]["to_AD"]["mean"] < 0.1 < 0.9 < figures["confidence_after"]["to_AD"]["mean"]
    assert figures["rank_1_reidentification"]["pooled_voxels"]["mean"] == 1.0
    distances = figures["set_distances"]
    assert distances["real_AD_to_generated_AD"]["distance"] < 0.1 * distances["real_CN_to_generated_AD"]["distance"]
    assert distances["real_CN_to_generated_AD"]["distance"] == pytest.approx(
        distances["real_CN_to_real_AD"]["distance"], rel=0.2
    )
    # half of the subject's voxels change by 0.5 of [-1, 1], which is 0.25 of [0, 1]
    assert figures["mse"]["mean"] == pytest.approx(0.25**2 / 2, rel=1e-4)


def test_doing_nothing_is_alike_and_flips_nothing():
    figures = evaluation(lambda subject, label: draw(subject, 1 - label)).run(loader())
    assert figures["flipped"]["to_AD"]["mean"] == 0.0
    assert figures["ssim"]["mean"] == pytest.approx(1.0)
    assert figures["mse"]["mean"] == 0.0


def test_another_subject_is_not_the_same():
    figures = evaluation(lambda subject, label: draw(subject + 1000, label)).run(loader())
    low, high = figures["rank_1_reidentification"]["pooled_voxels"]["interval"]
    assert low <= figures["rank_1_reidentification"]["pooled_voxels"]["mean"] <= high < 0.5
    assert figures["flipped"]["to_AD"]["mean"] == 1.0


def test_a_result_that_is_nearer_to_another_subject_is_not_re_identified():
    """The generated looks for itself among the inputs, not the other way round."""
    figures = evaluation(lambda subject, label: 0.6 * draw(0, label) + 0.4 * draw(subject, label)).run(loader())
    assert figures["rank_1_reidentification"]["pooled_voxels"]["mean"] == pytest.approx(1 / 24)


def test_intervals_resample_subjects_not_cases():
    batches = [{**batch, "subject": [f"s{int(case) // 4}" for case in batch["case"]]} for batch in loader()]
    change = evaluation(lambda subject, label: draw(subject, label if subject < 8 else 1 - label))
    found = change.run(batches)
    flipped = np.array([row["flipped"] for row in change.table], float)
    to_ad = np.array([row["target"] == 1 for row in change.table])
    subjects = [row["subject"] for row, keep in zip(change.table, to_ad, strict=True) if keep]
    expected = bootstrap_interval(np.mean, flipped[to_ad], groups=subjects)
    assert found["subjects"] == 6
    assert found["flipped"]["to_AD"]["interval"] == pytest.approx(expected)
    assert np.ptp(expected) > 1.2 * np.ptp(bootstrap_interval(np.mean, flipped[to_ad]))


def test_inputs_that_already_are_of_the_target_class_count_for_no_flip():
    class ToAD(Method):
        def explain(self, image: Tensor, network: Any, sample_ids: list[str]) -> SimpleNamespace:
            drawn = torch.stack([draw(int(case), 1) for case in sample_ids])
            return SimpleNamespace(image=drawn, target=torch.ones(len(image), dtype=torch.long))

    fixed = evaluation(draw)
    fixed.inferer = ToAD(draw)  # type: ignore[assignment]
    figures = fixed.run(loader())
    assert [row["flipped"] for row in fixed.table] == [True, None] * 12
    assert all(row["target"] == 1 for row in fixed.table)
    twelve_of_twelve = {"mean": 1.0, "interval": pytest.approx([0.025 ** (1 / 12), 1.0]), "cases": 12}
    assert figures["flipped"] == {"to_AD": twelve_of_twelve}
    assert figures["confidence_before"]["to_AD"]["mean"] < 0.1  # of the 12 that were to change


def test_what_is_drawn_outside_the_subject_is_no_error():
    def painted(subject: int, label: int) -> Tensor:
        image = draw(subject, 1 - label)
        image[:, 0] = 0.9
        return image

    assert evaluation(painted).run(loader())["mse"]["mean"] == 0.0


def test_similarity_looks_at_the_subject_alone():
    wide = [{**batch, "image": torch.nn.functional.pad(batch["image"], (6,) * 6, value=-1.0)} for batch in loader()]
    narrow = evaluation(draw)
    expected = narrow.run(loader())

    class Padded(Method):
        def explain(self, image: Tensor, network: Any, sample_ids: list[str]) -> SimpleNamespace:
            result = super().explain(image[(..., *(slice(6, -6),) * 3)], network, sample_ids)
            result.image = torch.nn.functional.pad(result.image, (6,) * 6, value=-1.0)
            return result

    padded = evaluation(draw)
    padded.inferer = Padded(draw)  # type: ignore[assignment]
    inner = (..., *(slice(6, -6),) * 3)
    padded.networks = {
        "logits": lambda image: classify(image[inner]),
        "features": lambda image: features(image[inner]),
        "pooled_voxels": lambda image: flat(image[inner]),
    }
    figures = padded.run(wide)
    assert figures["mse"]["mean"] == pytest.approx(expected["mse"]["mean"])
    assert figures["ssim"]["mean"] == pytest.approx(expected["ssim"]["mean"])


def test_the_file_has_a_row_a_case(tmp_path, capsys):
    run_evaluation(evaluation(draw), loader(), tmp_path)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert [row["case"] for row in content["per_case"]] == [str(i) for i in range(24)]
    assert all(row["flipped"] for row in content["per_case"])
    assert "set_distances" in json.loads(capsys.readouterr().out)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="no case"):
        evaluation(draw).run([])
