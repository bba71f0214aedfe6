# SPDX-License-Identifier: Apache-2.0
"""The benchmark on brains: the truth scores as the truth, doing nothing and noise as what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.brain.__main__ import controls
from benchmarks.brain.figure import draw_dose, draw_sheet
from benchmarks.brain.measure import MEASURES, measure
from benchmarks.brain.rows import GUIDANCE, METHODS
from benchmarks.brain.task import BrainTask
from benchmarks.counterfactual.run import Result, _digest
from benchmarks.counterfactual.tables import markdown
from benchmarks.counterfactual.task import Cases, Recipe

COUNT, SIZE = 12, (12, 16, 12)


def ventricle(radius: Tensor, texture: Tensor) -> Tensor:
    """A bright box with a texture of its own and a black ball of the given radius (N,) in its middle."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SIZE]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    inside = (radius[:, None, None, None] - distance + 0.5).clamp(0, 1)
    return ((0.4 + texture) * (1 - inside) - 0.9 * inside)[:, None]


def volumes(images: Tensor) -> Tensor:
    """Read the ball's volume off the gray values, in the column of the ventricles; hippocampi are the rest."""
    dark = (images < -0.25).flatten(1).sum(1).float() * 8
    return torch.stack([torch.zeros_like(dark)] * 3 + [dark, 2e4 - dark], dim=1)


@pytest.fixture(scope="module")
def task() -> BrainTask:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(COUNT) % 2
    small, large = (torch.rand(COUNT, generator=generator) + offset for offset in (2.0, 3.5))
    texture = 0.15 * torch.rand(COUNT, *SIZE, generator=generator)
    states = [ventricle(torch.where(label == k, large, small), texture) for k in (1, 0)]
    before, after = volumes(states[0]), volumes(states[1])
    structure = (states[1] - states[0]).abs() > 0.2
    truth = {"image": states[1], "volumes_before": before, "volumes": after, "structure": structure}
    other = (states[1] + 0.02 * torch.randn(states[1].shape, generator=generator)).clamp(-1, 1)
    truth |= {"appearance": structure, "brain": torch.ones_like(structure), "other_noise": other}
    names = [f"s{k}" for k in range(COUNT)]

    def classify(images: Tensor) -> Tensor:
        logit = (volumes(images)[:, 3] - 1150) / 100
        return torch.stack([-logit, logit], dim=1)

    def embed(images: Tensor) -> Tensor:
        corner = images[:, :, :4, :4, :4].flatten(1)
        return corner - corner.mean(1, keepdim=True)

    features = {"identity network": embed, "pooled voxels": embed}
    reference = {k: states[0][label == k] for k in (0, 1)}
    cases = Cases(states[0], names, names, truth, 1 - label)
    return BrainTask(
        Recipe("controlcg", ()), cases, label, reference, classify, volumes, classify, volumes, features, 2.0
    )


def result(images: Tensor) -> Result:
    zeros = torch.zeros(len(images), dtype=torch.long)
    shares = torch.zeros(len(images), 2)
    return Result(images, images[:, None], shares, zeros.bool(), zeros.bool(), zeros, 1.0, 1.0)


def test_the_truth_has_slope_one_all_flips_and_perfect_localization(task: BrainTask) -> None:
    found = measure(task, result(task.cases.truth["image"]))
    assert found["ventricles_slope"].value == pytest.approx(1)
    assert found["ventricles_r"].value == pytest.approx(1)
    assert found["ventricles_gain_1"].value == pytest.approx(1)
    assert found["ventricles_change_1"].value > 0 > found["ventricles_change_0"].value
    assert found["hippocampi_change_1"].value < 0
    assert found["flips"].value == found["agreement"].value == 1
    assert found["auprc"].value > 0.95
    assert found["truth_ratio"].value == pytest.approx(0)
    assert found["rank_inner"].value == 1
    assert found["fd_CN_gAD"].value > found["fd_AD_gAD"].value
    assert found["fd_AD_gCN"].value > found["fd_CN_gCN"].value


def test_doing_nothing_changes_no_volume_and_flips_nothing(task: BrainTask) -> None:
    found = measure(task, result(task.cases.image))
    assert found["ventricles_slope"].value == pytest.approx(0, abs=1e-6)
    assert found["flips"].value == 0
    assert found["mse"].value == pytest.approx(0)
    assert found["truth_ratio"].value == pytest.approx(1)
    assert found["auprc"].value < 0.3
    assert found["fd_AD_gAD"].value > found["fd_CN_gAD"].value  # "generated AD" are still CN


def test_half_the_change_is_half_the_gain_of_its_direction(task: BrainTask) -> None:
    images = torch.where((task.label == 0)[:, None, None, None, None], task.cases.truth["image"], task.cases.image)
    found = measure(task, result(images))
    assert found["ventricles_gain_1"].value == pytest.approx(1)  # CN to AD was done
    assert found["ventricles_gain_0"].value == pytest.approx(0)  # AD to CN was not
    assert 0 < found["ventricles_slope"].value < 1
    assert found["flips"].value == 0.5


def test_an_error_is_told_by_whether_a_structure_changes_there(task: BrainTask) -> None:
    truth = task.cases.truth
    found = measure(task, result(torch.where(truth["structure"], truth["image"], task.cases.image)))
    assert found["truth_changed"].value == pytest.approx(0, abs=1e-6)
    assert found["truth_same"].value == pytest.approx(1)


def test_noise_is_another_picture_without_the_class(task: BrainTask) -> None:
    made = dict(controls(task, 1.0))
    noise = made["control: noise as large as the true change"]
    found = measure(task, noise)
    assert (
        found["auprc"].value < 0.5 * measure(task, made["ceiling: the same subject in the other state"])["auprc"].value
    )
    assert found["flips"].value <= 0.5


def test_controls_are_told_from_answers_by_effectiveness_and_sharpness(task: BrainTask) -> None:
    image, truth = task.cases.image, task.cases.truth["image"]
    made = {label: measure(task, result) for label, result in controls(task, 1.0)}
    found = made["control: input blurred by 1 voxels"]
    assert found["sharpness"].value < 0.8
    assert abs(found["effectiveness"].value) < 0.2
    edit = made["ceiling: perfect edit of the structures that change"]
    assert edit["truth_changed"].value == pytest.approx(0, abs=1e-6)
    assert edit["effectiveness"].value > 0.9
    half = measure(task, result(0.5 * (image + truth)), result(0.8 * image + 0.2 * truth))
    assert half["effectiveness"].value == pytest.approx(0.5, abs=1e-4)
    assert half["class_effectiveness"].value == pytest.approx(0.3, abs=1e-4)
    assert half["truth_ratio"].value == pytest.approx(0.25, abs=1e-4)


def test_cases_that_differ_in_their_target_alone_are_other_cases(task: BrainTask) -> None:
    cases = task.cases
    assert _digest(cases) != _digest(Cases(cases.image, cases.case, cases.subject, {}, 1 - cases.target))
    assert cases.where(task.label == 0).target.tolist() == [1] * (COUNT // 2)


def test_rows_differ_and_tables_and_pictures_come(task: BrainTask, tmp_path) -> None:
    rows = [*METHODS, *GUIDANCE]
    assert (
        len({row.name for row in rows})
        == len(rows)
        == len({f"{row.overrides} {row.toward_own_class} {row.num_seeds}" for row in rows})
    )
    results = [result(task.cases.image), result(task.cases.truth["image"])]
    text = markdown(["a", "b"], [measure(task, each) for each in results], MEASURES)
    assert "rAD2gCN" in text
    draw_sheet(tmp_path / "sheet.png", task, ["nothing", "truth"], results)
    draw_dose(tmp_path / "dose.png", task, ["w = 0", "w = 2, strength 1"], results)
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("sheet.png", "dose.png"))
