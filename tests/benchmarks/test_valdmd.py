# SPDX-License-Identifier: Apache-2.0
"""The benchmark of VALD-MD: sides are the patient's, shares are exact, true states and true chests score best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.studies import uncomputed
from benchmarks.counterfactual.tables import markdown
from benchmarks.counterfactual.task import Cases, Recipe
from benchmarks.valdmd import induction
from benchmarks.valdmd.healthy import floor_section
from benchmarks.valdmd.induction import induced_figures, induction_sections, pair_figures
from benchmarks.valdmd.localized import LUNG, area, half, lobe, num_lesions, share
from benchmarks.valdmd.measure import MEASURES, SUBGROUPS, measure, measure_map
from benchmarks.valdmd.prompts import draw_prompts
from benchmarks.valdmd.rows import WORDINGS
from benchmarks.valdmd.task import VISIBLE, ChestTask
from benchmarks.valdmd.zero_shot import heart_ratio
from medcf.metrics import pooled_pixels
from medcf.phantoms import ChestDataset, ChestState, ChestXray, PairedChestDataset
from medcf.phantoms.chest.captions import captions, training_captions

COUNT, SIZE = 4, (64, 64)


class Space:
    """Latents that lose a tenth of the image."""

    def floors(self, image: Tensor) -> dict[str, Tensor]:
        return {"floor": 0.1 * image, "difference_floor": 0.01 * image}


def task_of(kind: type[ChestDataset], balance: tuple[float, ...], **options: Any) -> ChestTask:
    """Make a task whose judges call an image sick where it is not the true healthy one."""
    drawn: dict[str, Any] = {"split": "test", "balance": balance, "size": SIZE, "spacing": None, **options}
    data = kind(count=COUNT, progress=False, **drawn)
    items = [data[i] for i in range(COUNT)]
    columns = {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]
               if name not in ("caption", "case")}  # fmt: skip
    truth = {name: columns[name] for name in ("lungs", "device", "label", "heart_ratio")}
    truth |= {"segmentation_before": columns["segmentation"], "child": columns["age_group"]}
    healthy, target = columns["image"], None
    if kind is PairedChestDataset:
        healthy, target = columns["image_true"], torch.zeros(COUNT, dtype=torch.long)
        truth |= {"image": healthy, "lesion": (columns["lesion"] >= VISIBLE) & (columns["lungs"] > 0)}

    def classify(images: Tensor) -> Tensor:
        away = (images[:, None] - healthy[None]).abs().flatten(2).mean(2).amin(1)
        logit = (away - 0.02) * 100
        return torch.stack([-logit, logit, torch.full_like(logit, -99), torch.full_like(logit, -99)], dim=1)

    names = [str(item["case"]) for item in items]
    cases = Cases(columns["image"], names, names, truth, target)
    return ChestTask(Recipe("valdmd", ()), cases, classify, classify, None, Space(), pooled_pixels, drawn)


@pytest.fixture(scope="module")
def sick() -> ChestTask:
    return task_of(PairedChestDataset, (0.0, 1.0, 0.0, 0.0), devices=1.0)


@pytest.fixture(scope="module")
def normal() -> ChestTask:
    return task_of(ChestDataset, (1.0, 0.0, 0.0, 0.0))


def maps(*blobs: tuple[int, int, float]) -> Tensor:
    """One map (1, 1, 64, 64) with squares of 8 pixels at (row, column) with a value."""
    values = torch.zeros(1, 1, *SIZE)
    for row, column, value in blobs:
        values[..., row : row + 8, column : column + 8] = value
    return values


LUNGS = torch.zeros(1, 1, *SIZE, dtype=torch.long)
LUNGS[..., 10:50, 6:28], LUNGS[..., 10:50, 36:58] = 1, 2  # the patient's right is on the left of the picture


def test_share_counts_absolute_change_and_is_nan_where_nothing_changed() -> None:
    change = maps((20, 10, -1.0), (20, 40, 3.0), (52, 40, 4.0))
    assert share(change, LUNG["left"] == LUNGS, LUNGS > 0).item() == pytest.approx(0.75)
    assert share(change, LUNG["right"] == LUNGS, LUNGS > 0).item() == pytest.approx(0.25)
    assert share(change, LUNGS == 0).item() == pytest.approx(0.5)
    assert share(change, half(LUNGS, "left")).item() == pytest.approx(7 / 8)
    assert share(torch.zeros_like(change), LUNGS > 0).isnan().all()


def test_halves_and_lobes_divide_picture_and_lung() -> None:
    right, left = half(LUNGS, "right"), half(LUNGS, "left")
    assert (right ^ left).all()
    assert right[0, 0, 0, :32].all()
    assert not right[0, 0, 0, 32:].any()
    upper, lower = lobe(LUNGS, "left", "upper"), lobe(LUNGS, "left", "lower")
    assert torch.equal(upper | lower, LUNGS == 2)
    assert share(maps((12, 40, 1.0)), upper).item() == 1
    assert share(maps((40, 40, 1.0)), upper).item() == 0


def test_lesions_are_counted_apart_and_dark_or_faint_ones_not() -> None:
    assert num_lesions(maps((12, 10, 0.6))).item() == 1
    assert num_lesions(maps((12, 10, 0.6), (36, 42, 0.5))).item() == 2
    assert num_lesions(maps((12, 10, 0.6), (36, 42, 0.2))).item() == 1  # below half of the first
    assert num_lesions(maps((12, 10, -0.6))).item() == num_lesions(maps((12, 10, 0.05))).item() == 0
    assert area(maps((12, 10, 0.6)), LUNGS > 0).item() == pytest.approx(64 / (2 * 40 * 22))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("place", ["upper", "lower"])
def test_sides_are_the_patients_and_lobes_those_of_the_phantom(side: Any, place: Any) -> None:
    chest = ChestXray(5)
    state = ChestState("lung_opacity", side, place, extent=0.3)
    images = [chest.render(each, size=SIZE).image for each in (state, ChestState())]
    change = torch.from_numpy(images[0] - images[1])[None, None]
    lungs = torch.from_numpy(chest.render(size=SIZE).lungs.astype(int))[None, None]
    assert share(change, lungs == LUNG[side], lungs > 0).item() > 0.97
    assert share(change, half(lungs, side)).item() > 0.97
    assert share(change, lobe(lungs, side, place), lungs > 0).item() > 0.8
    columns = torch.arange(SIZE[1]).double()
    center = float((change.abs() * columns).sum() / change.abs().sum())
    assert (center < 32) == (side == "right")  # the patient's right is at the picture's left


def test_wordings_describe_their_states() -> None:
    for wording in WORDINGS:
        texts = captions(wording.state, held_out=wording.held_out)
        assert wording.prompt in texts or wording.prompt in ("COVID-19", "viral pneumonia"), wording.prompt
        assert (wording.prompt not in training_captions()) == (wording.held_out or wording.prompt == "COVID-19")
    assert len({wording.name for wording in WORDINGS}) == len(WORDINGS)


def test_held_out_prompts_are_in_no_training_caption() -> None:
    known = set(training_captions())
    for label in range(4):
        assert not known & set(draw_prompts(label, 20, held_out=True))
        assert set(draw_prompts(label, 20, held_out=False)) <= known


def test_the_true_healthy_chest_scores_best_and_the_input_does_nothing(sick: ChestTask) -> None:
    truth, image = sick.cases.truth["image"], sick.cases.image
    best = measure(sick, uncomputed(sick.cases, truth), uncomputed(sick.cases, image))
    nothing = measure(sick, uncomputed(sick.cases, image))
    assert best["judge"].value == best["flips"].value == best["rank_1"].value == 1
    assert best["truth_ratio"].value == pytest.approx(0)
    assert best["effectiveness"].value == best["class_effectiveness"].value == pytest.approx(1)
    assert best["auprc"].value > 0.8
    assert best["composition"].value == 0
    assert nothing["judge"].value == 0
    assert nothing["truth_ratio"].value == pytest.approx(1)
    assert nothing["auprc"].value < 0.5 < best["auprc"].value
    assert "AUPRC" in markdown(["truth"], [best], MEASURES)


def test_a_device_that_fades_loses_its_contrast(sick: ChestTask) -> None:
    device = sick.cases.truth["segmentation_before"] == 4
    assert device.flatten(1).any(1).all()
    kept = measure(sick, uncomputed(sick.cases, sick.cases.image), measures=SUBGROUPS)
    faded = sick.cases.image.clone()
    faded[device] -= 0.1
    gone = measure(sick, uncomputed(sick.cases, faded), measures=SUBGROUPS)
    assert kept["device_contrast"].value == pytest.approx(1)
    assert kept["device_change"].value == 0
    assert gone["device_contrast"].value < 1
    assert gone["device_change"].value == pytest.approx(0.1, abs=1e-4)


def test_a_map_of_the_lesion_beats_a_map_of_everything(sick: ChestTask) -> None:
    lesion = sick.cases.truth["lesion"].float()
    assert measure_map(sick, lesion)["auprc"].value == pytest.approx(1)
    assert measure_map(sick, torch.ones_like(lesion))["auprc"].value < 0.6


def test_floors_are_compared_with_the_true_change(sick: ChestTask) -> None:
    section = floor_section(sick)
    figures = section.rows[section.labels.index("all sick")]
    assert figures["floor"].value == pytest.approx(10 * figures["difference_floor"].value, rel=1e-4)
    assert figures["floor_ratio"].value == pytest.approx(100 * figures["difference_ratio"].value, rel=1e-4)


def test_true_states_are_induced_where_they_were_asked_for(
    normal: ChestTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = {wording.prompt: wording.state for wording in WORDINGS}

    def perfect(row: Row, recipe: Recipe, cases: Cases, setup: Any, work: Path) -> Result:
        return replace(
            uncomputed(cases, normal.rendered(states[row.overrides["prompt"]], len(cases), again=False)), seconds=1.0
        )

    monkeypatch.setattr(induction, "obtain", perfect)
    wordings, pairs = induction_sections(normal, None, tmp_path)  # type: ignore[arg-type]
    figures = dict(zip(wordings.labels, wordings.rows, strict=True))
    assert figures["large lung opacity on the left"]["side"].value > 0.97
    assert figures["large lung opacity on the left"] | {"seconds": None} == figures[
        "truth: large lung opacity on the left"
    ] | {"seconds": None}
    lobed = figures["large lung opacity in the right upper lobe"]
    assert lobed["lobe"].value > 0.6
    compared = dict(zip(pairs.labels, pairs.rows, strict=True))
    assert compared["large on the left, large on the right"]["follows"].value == 1
    assert compared["large on the left, large on the right"]["against"].value > 0.9
    assert compared["large and small on the left"]["larger"].value == 1


def test_a_finding_on_the_other_side_is_seen_as_such(normal: ChestTask) -> None:
    left, right = WORDINGS[0], WORDINGS[1]
    images = {wording.prompt: normal.rendered(wording.state, again=False) for wording in WORDINGS[:4]}
    swapped = images | {left.prompt: images[right.prompt], right.prompt: images[left.prompt]}
    figures = induced_figures(normal, normal.cases, swapped[left.prompt], left)
    assert figures["side"].value < 0.1
    row = pair_figures(normal.cases, swapped)[0][1]
    assert row["follows"].value == 0
    assert row["swapped"].value < -0.8
    assert row["against"].value < 0.1


def test_heart_ratio_is_that_of_the_phantom() -> None:
    samples = [ChestXray(seed).render(size=SIZE) for seed in (1, 2)]
    labels = torch.stack([torch.from_numpy(sample.segmentation.astype(int))[None] for sample in samples])
    for ratio, sample in zip(heart_ratio(labels).tolist(), samples, strict=True):
        assert ratio == pytest.approx(sample.heart_ratio, abs=0.04)
    assert heart_ratio(torch.zeros(1, 1, 8, 8)).isnan().all()
