# SPDX-License-Identifier: Apache-2.0
"""The evaluation on volumes tells the true change from doing nothing, from an average and from another subject."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medcf.evaluation import Evaluation, run_evaluation
from medcf.metrics.volumes import SegmentedVolumes

CANDIDATES = {"counterfactual": "pred", "input": "image", "truth": "image_true"}
METRICS = {
    "flip_ratio": {"name": "flip_ratio", "by": "target"},
    "flips_the_oracle_confirms": {"name": "oracle_agreement", "by": "target"},
    "error_to_truth_over_doing_nothing": "relative_truth_error",
    "rank_1_reidentification": {"name": "re_identification", "of": ["voxels"], "k": 1},
    "volume_change": {"name": "volume_change", "of": ["ventricle"], "on": CANDIDATES, "read": "summary_in_ml"},
}
ROWS = {
    "classifier_before": "confidence(image)",
    "classifier_after": "confidence(pred)",
    "oracle_before": "judge_confidence(image)",
    "oracle_after": "judge_confidence(pred)",
    "{structure}_mm3_input": "volume(image, {structure})",
    "{structure}_mm3_truth": "volume(image_true, {structure})",
}

# A toy world: a column of x = 0 has one black voxel more for each step of the disease; the rest is the subject.
SIZE, VOXEL = (6, 6, 20), 8.0


class Threshold(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        dark = torch.zeros_like(image)
        dark[:, :, 0, 0] = -200.0 * image[:, :, 0, 0]
        return torch.cat([torch.where(dark != 0, 0.0, 100.0), dark], 1)


class Counter(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        dark = (image[:, 0, 0, 0] < 0).sum(1) - 9.5
        return torch.stack([-dark, dark], 1)


class Method:
    def __init__(self, change: Any) -> None:
        self.change = change

    def explain(self, image: Tensor, network: nn.Module, sample_ids: list[str]) -> SimpleNamespace:
        return SimpleNamespace(image=self.change(image, [int(each) for each in sample_ids]))


def drawn(subject: Tensor, dark: Tensor) -> Tensor:
    image = subject.clone()
    image[:, 0, 0, 0] = torch.where(torch.arange(SIZE[2]) < dark[:, None], -1.0, 1.0)
    return image


def world(count: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    subject = torch.rand(count, 1, *SIZE, generator=generator)
    target = torch.arange(count) % 2
    small, large = (torch.randint(*span, (count,), generator=generator) for span in ((2, 6), (13, 18)))
    before, after = torch.where(target == 1, small, large), torch.where(target == 1, large, small)
    item = {
        "image": drawn(subject, before),
        "image_true": drawn(subject, after),
        "target": target,
        "volumes": torch.stack([torch.zeros(count), VOXEL * before], 1),
        "volumes_true": torch.stack([torch.zeros(count), VOXEL * after], 1),
        "subject": torch.arange(count) + 100,
        "case": [str(index) for index in range(count)],
    }
    return [{key: value[part] for key, value in item.items()} for part in (slice(0, 6), slice(6, count))]


def evaluation(change: Any) -> Evaluation:
    """Structure "ventricle" is label 2 of the truth and the only label of the segmenter."""
    return Evaluation(
        METRICS,
        {
            "logits": Counter(),
            "judge": Counter(),
            "volumes": SegmentedVolumes(Threshold(), 2.0, [1]),
            "voxels": lambda image: image[:, :, 1:].flatten(1) - 0.5,
        },
        ROWS,
        inferer=Method(change),  # type: ignore[arg-type]
        network=nn.Identity(),
        structures={"ventricle": 2},
    )


def figures(change: Any) -> dict[str, Any]:
    return evaluation(change).run(world())


def test_the_true_change_is_found():
    truth = torch.cat([batch["image_true"] for batch in world()])
    found = figures(lambda image, cases: truth[cases])
    assert found["cases"] == 16
    assert found["flip_ratio"] == found["flips_the_oracle_confirms"] == {"0": 1.0, "1": 1.0}
    change = found["volume_change"]["counterfactual"]["ventricle"]
    expected = {"slope": 1.0, "correlation": 1.0, "gain_to_0": 1.0, "gain_to_1": 1.0, "mean_absolute_error_ml": 0.0}
    assert change == pytest.approx(expected, abs=1e-6)
    assert found["volume_change"]["truth"]["ventricle"] == pytest.approx(change)
    assert found["error_to_truth_over_doing_nothing"] == pytest.approx(0.0)
    assert found["rank_1_reidentification"] == {"voxels": 1.0}


def test_doing_nothing_changes_nothing():
    found = figures(lambda image, cases: image)
    assert found["flip_ratio"] == {"0": 0.0, "1": 0.0}
    change = found["volume_change"]["counterfactual"]["ventricle"]
    assert change["slope"] == change["gain_to_0"] == change["gain_to_1"] == 0.0
    assert change == pytest.approx(found["volume_change"]["input"]["ventricle"], nan_ok=True)
    assert found["error_to_truth_over_doing_nothing"] == pytest.approx(1.0)


def test_half_the_change_in_one_direction_is_seen_there():
    batches = world()
    truth, target = (torch.cat([batch[key] for batch in batches]) for key in ("image_true", "target"))
    found = figures(lambda image, cases: torch.where((target[cases] == 1).reshape(-1, 1, 1, 1, 1), truth[cases], image))
    change = found["volume_change"]["counterfactual"]["ventricle"]
    assert (change["gain_to_1"], change["gain_to_0"]) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert found["flip_ratio"] == {"0": 0.0, "1": 1.0}


def test_errors_are_in_milliliters():
    true = torch.cat([batch["volumes_true"] - batch["volumes"] for batch in world()])[:, 1]
    change = figures(lambda image, cases: image)["volume_change"]["counterfactual"]["ventricle"]
    assert change["mean_absolute_error_ml"] == pytest.approx(float(true.abs().mean()) / 1000)


def test_a_result_that_is_nearer_to_another_subject_is_not_re_identified():
    """The counterfactual looks for itself among the inputs, not the other way round."""
    images = torch.cat([batch["image"] for batch in world()])
    found = figures(lambda image, cases: 0.6 * images[:1] + 0.4 * image)
    assert found["rank_1_reidentification"]["voxels"] == pytest.approx(1 / 16)


def test_the_oracle_judges_for_itself():
    class Contrary(Counter):
        def forward(self, image: Tensor) -> Tensor:
            return -super().forward(image) / 2

    truth = torch.cat([batch["image_true"] for batch in world()])
    contrary = evaluation(lambda image, cases: truth[cases])
    contrary.networks = {**contrary.networks, "judge": Contrary()}
    found = contrary.run(world())
    assert found["flip_ratio"] == {"0": 1.0, "1": 1.0}
    assert found["flips_the_oracle_confirms"] == {"0": 0.0, "1": 0.0}
    for row in contrary.table:
        assert row["classifier_before"] < 0.5 < row["classifier_after"]
        assert row["oracle_after"] < 0.5 < row["oracle_before"]


@pytest.mark.parametrize("amp", [False, True])
def test_16_bits_are_for_the_method_alone(amp):
    seen = {}

    def change(image: Tensor, cases: list[int]) -> Tensor:
        seen["method"] = torch.is_autocast_enabled("cpu")
        return image

    class Asked(Counter):
        def forward(self, image: Tensor) -> Tensor:
            seen["oracle"] = torch.is_autocast_enabled("cpu")
            return super().forward(image)

    asked = evaluation(change)
    asked.networks, asked.amp = {**asked.networks, "judge": Asked()}, amp
    asked.run(world())
    assert seen == {"method": amp, "oracle": False}


def test_another_subject_is_not_re_identified():
    truth = torch.cat([batch["image_true"] for batch in world()])
    found = figures(lambda image, cases: truth[[(case + 2) % 16 for case in cases]])
    assert found["flip_ratio"] == {"0": 1.0, "1": 1.0}
    assert found["rank_1_reidentification"]["voxels"] == 0.0


def test_the_figures_are_written_with_the_cases(tmp_path, capsys):
    found = run_evaluation(evaluation(lambda image, cases: image), world(), tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    rows = written.pop("per_case")
    assert written == json.loads(capsys.readouterr().out)
    assert written["cases"] == found["cases"] == len(rows)
    first = world()[0]
    assert rows[0]["ventricle_mm3_input"] == pytest.approx(float(first["volumes"][0, 1]))
    assert rows[0]["ventricle_mm3_truth"] == pytest.approx(float(first["volumes_true"][0, 1]))
    assert rows[0]["classifier_before"] == rows[0]["oracle_after"] < 0.5


def test_no_case_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        evaluation(lambda image, cases: image).run([])
