# SPDX-License-Identifier: Apache-2.0
"""Real brains: nobody is trained on and explained, and the figures tell a counterfactual from doing nothing."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet

from benchmarks.brain.real_evaluate import RealTask, deep_fluid, load_task, measure
from benchmarks.brain.real_sets import SETS, command, prepare
from benchmarks.counterfactual.task import Cases, Recipe
from medcf.bundle import bundle_folder
from medcf.bundle.options import check_options


def write_labels(folder: Path, count: int = 24, **columns: str) -> None:
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "subject", "label_high_deep_csf", "label_large", "mask"])
        for k in range(count):
            writer.writerow([f"images/{k}.nii.gz", f"s{k // 2}", (k // 2) % 2, (k // 2) % 2, f"masks/{k}.nii.gz"])


@pytest.mark.parametrize("name", sorted(SETS))
def test_nobody_is_of_both_splits_and_the_classes_are_in_both(tmp_path, name):
    write_labels(tmp_path)
    counts = prepare(tmp_path, tmp_path / "out", SETS[name])
    with (tmp_path / "out" / "volumes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    people = {split: {row["subject"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert len(people["train"]) == 9
    assert len(people["val"]) == 3
    assert not people["train"] & people["val"]
    assert sum(counts.values()) == 24
    assert set(counts) >= {f"train, {each}" for each in SETS[name].classes}
    assert all(Path(row["file"]).is_absolute() for row in rows)
    assert bool(rows[0]["segmentation"]) == (SETS[name].segmentation is not None)
    again = tmp_path / "out" / "volumes.csv"
    text = again.read_text()
    prepare(tmp_path, tmp_path / "out", SETS[name])
    assert again.read_text() == text


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data"):
        prepare(tmp_path, tmp_path, SETS["t1"])
    (tmp_path / "labels.csv").write_text("file,subject\na,b\n")
    with pytest.raises(ValueError, match="label_large, mask"):
        prepare(tmp_path, tmp_path, SETS["hippocampus"])
    with pytest.raises(FileNotFoundError, match=r"volumes.csv does not exist: run the step prepare first"):
        load_task("t1", tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "step"), [(name, step) for name, real in sorted(SETS.items()) for step in real.steps])
def test_every_training_is_one_that_the_configs_know(tmp_path, name, step, monkeypatch):
    line = command(SETS[name], step, tmp_path)
    check_options(line[2:])  # refuses ids that the configs do not have
    files = [part.strip("'\"") for part in line[line.index("--config_file") + 1].strip("[]").split(",")]
    parser = ConfigParser()
    parser.update(ConfigParser.load_config_files(files))
    parser.update({**SETS[name].grid, **SETS[name].steps[step].overrides})
    assert parser.get_parsed_content("train#dataset#split") == "train"
    assert parser["validate#dataset#split"] == "val"
    assert list(parser["spatial_size"]) == SETS[name].grid.get("spatial_size", [40, 48, 40])


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_overlay_explains_with_the_weights_of_its_set(name):
    parser = Recipe("controlcg", ("inference.json", SETS[name].overlay), {"models_dir": "here"}).open()
    names = ("model", "classifier", "novelty")
    assert parser.get_parsed_content("weights") == {name: f"here/{name}.pt" for name in names}
    assert parser.get_parsed_content("novelty") is None  # too few volumes to calibrate it on
    assert parser["class_names"] == list(SETS[name].classes)
    assert list(parser["spatial_size"]) == SETS[name].grid.get("spatial_size", [40, 48, 40])
    assert (bundle_folder("controlcg") / "configs" / SETS[name].overlay).is_file()


def brain(fluid: int) -> torch.Tensor:
    """A bright block with a dark core of a size."""
    image = torch.full((1, 24, 24, 24), -1.0)
    image[:, 2:22, 2:22, 2:22] = 0.5
    low, high = 12 - fluid, 12 + fluid
    image[:, low:high, low:high, low:high] = -0.9
    return image


def test_deep_fluid_is_measured_within_the_inputs_brain():
    small, large = brain(2)[None], brain(4)[None]
    assert float(deep_fluid(large, small, 4.0)) == pytest.approx(8 * float(deep_fluid(small, small, 4.0)), rel=0.35)
    black = torch.where(small > -1, small, torch.tensor(0.9))  # what stands outside of the input's brain is not seen
    assert float(deep_fluid(black, small, 4.0)) == float(deep_fluid(small, small, 4.0))


@dataclass
class Found:
    image: torch.Tensor


class Judge(torch.nn.Module):
    """Says class 1 where the core is large."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        share = (image[:, 0, 8:16, 8:16, 8:16] < -0.5).float().mean((1, 2, 3))
        return torch.stack([0.3 - share, share - 0.3], dim=1) * 50


@pytest.fixture
def task() -> RealTask:
    sizes = [2, 2, 2, 4, 4, 4]
    images = torch.stack([brain(size) for size in sizes])
    for k in range(6):  # what tells the subjects apart
        images[k, :, 2:6, 2 + 3 * k : 5 + 3 * k, 2:6] = 0.95
    label = torch.tensor([int(size == 4) for size in sizes])
    names = [f"s{k}" for k in range(6)]
    torch.manual_seed(0)
    judge = DenseNet(3, 1, 2, init_features=4, growth_rate=4, block_config=(1, 1), bn_size=1).eval()
    return RealTask(
        Recipe("controlcg", ()), Cases(images, names, names, target=1 - label), label, (images, label), Judge(), judge,
        lambda images, inputs: deep_fluid(images, inputs, 4.0),
    )  # fmt: skip


def test_the_other_class_is_right_and_doing_nothing_is_not(task):
    opposite = torch.stack([brain(4 if target else 2) for target in task.cases.target.tolist()])
    good, idle = measure(task, Found(opposite)), measure(task, Found(task.cases.image))
    assert good["flips"].value == 1
    assert idle["flips"].value == 0
    assert good["right_way"].value == 1
    assert idle["right_way"].value == 0
    assert good["up"].value > 1 > 0 > good["down"].value
    assert good["up"].count == good["down"].count == 3
    assert idle["up"].value == idle["down"].value == 0
    assert idle["ssim"].value == pytest.approx(1)
    assert good["ssim"].value < 0.99
    assert idle["rank"].value == 1
    assert good["fd_target"].value < good["fd_source"].value
    assert idle["fd_source"].value < idle["fd_target"].value


def test_inputs_that_are_of_the_target_already_do_not_flip(task):
    swapped = RealTask(
        **{**vars(task), "cases": Cases(task.cases.image, task.cases.case, task.cases.subject, target=task.label)}
    )
    found = measure(swapped, Found(task.cases.image))
    assert found["flips"].count == 0
    assert found["flips"].value != found["flips"].value  # no case, no share
