# SPDX-License-Identifier: Apache-2.0
"""The worked run on real data, on tables and images made up here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged
from PIL import Image

from benchmarks.fetal_us.__main__ import main
from benchmarks.fetal_us.evaluate import Images, measure
from benchmarks.fetal_us.prepare import TABLES, prepare
from benchmarks.fetal_us.report import BEGIN, END, insert, table
from benchmarks.fetal_us.statistics import balanced_accuracy, bootstrap, chance_of_reidentification, share
from medcf.data import StudyReader
from medcf.inferers.counterfactual import Counterfactual
from medcf.training.datasets import own_dataset
from medcf.transforms import ToGridd

PREPARE = Compose([LoadImaged("image", reader=StudyReader(), expanduser=False), ToGridd("image", size=(16, 20))])

COLUMNS = ("file", "mask", "mask_kind", "subject", "source", "label_brain", "label_hc_plane")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty labeled subjects with three planes each, ten of another source, and what is no brain."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    rows: list[dict[str, str]] = []

    def add(name: str, subject: str, brain: str, label: str, kind: str = "") -> None:
        picture = random.integers(40, 200, (48, 60)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        row = dict.fromkeys(COLUMNS, "") | {"file": f"images/{name}.png", "subject": subject, "label_brain": brain}
        row |= {"label_hc_plane": label, "mask_kind": kind}
        if kind:
            mask = np.zeros((48, 60), np.uint8)
            mask[10:40, 10:50] = 1
            mask[20:25, 20:40] = 2
            Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
            row["mask"] = f"masks/{name}.png"
        rows.append(row)

    for number in range(30):
        for plane in range(3):
            kind = {0: "head+lv", 1: "lv+csp"}.get(plane, "") if number % 3 == 0 else ""
            add(f"p{number}_{plane}", f"S{number}", "1", str((number + plane) % 2), kind)
        add(f"u{number}", f"S{number}", "1", "")  # a brain plane of unknown kind, of a labeled subject
    for number in range(10):
        add(f"h{number}", f"H{number}", "1", "", "head")
    add("abdomen", "A0", "0", "")
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def tables(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    main(["prepare", "--data", str(data), "--out", str(out)])
    return out


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", ["planes", "judge", "brain", "head"])
def test_nobody_is_in_two_splits(tables: Path, name: str) -> None:
    splits: dict[str, set[str]] = {}
    for row in read(tables / f"{name}.csv"):
        splits.setdefault(row["subject"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {"train", "val"} <= set.union(*splits.values())


def test_no_training_sees_a_validation_subject(tables: Path) -> None:
    held_out = {row["subject"] for row in read(tables / "planes.csv") if row["split"] == "val"}
    assert len(held_out) == 6
    for name in TABLES:
        trained = {row["subject"] for row in read(tables / f"{name}.csv") if row["split"] != "val"}
        assert not trained & held_out, name


def test_both_labels_are_in_every_split_of_planes(tables: Path) -> None:
    found = {(row["split"], row["label"]) for row in read(tables / "planes.csv")}
    assert found == {(split, label) for split in ("train", "val", "test") for label in "01"}


def test_the_judge_learns_from_other_subjects_than_the_classifier(tables: Path) -> None:
    trained = [
        {row["subject"] for row in read(tables / f"{name}.csv") if row["split"] == "train"}
        for name in ("planes", "judge")
    ]
    assert trained[0] - trained[1]
    assert trained[1] - trained[0]


def test_unknown_planes_train_the_null_class_of_the_diffusion_model(tables: Path) -> None:
    rows = [row for row in read(tables / "brain.csv") if row["split"] == "train"]
    assert {row["label"] for row in rows} == {"", "0", "1"}
    assert not any("abdomen" in row["file"] for row in rows)
    assert any("h3.png" in row["file"] for row in rows)
    dataset = own_dataset(tables / "brain.csv", "train", PREPARE, null_label=2)
    assert len(dataset) == len(rows)
    assert [int(dataset[i]["label"]) for i in range(len(rows))] == [int(row["label"] or 2) for row in rows]


def test_head_masks_are_binary_and_filled(tables: Path, data: Path) -> None:
    rows = read(tables / "head.csv")
    assert rows
    for row in rows:
        mask = np.asarray(Image.open(row["mask"]))
        assert set(np.unique(mask)) == {0, 1}
        assert mask[22, 30] == 1  # a ventricle lies inside of the head
    # a mask without the head itself would teach that there is none
    assert not any(Path(row["file"]).stem.endswith("_1") for row in rows)


def test_inputs_are_the_other_planes_of_the_validation(tables: Path) -> None:
    expected = [r["file"] for r in read(tables / "planes.csv") if r["split"] == "val" and r["label"] == "0"]
    assert [row["file"] for row in read(tables / "inputs.csv")] == expected


def test_the_split_depends_on_the_seed_alone(data: Path, tables: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "same")
    assert (tmp_path / "same" / "planes.csv").read_text() == (tables / "planes.csv").read_text()
    prepare(data, tmp_path / "other", seed=1)
    assert (tmp_path / "other" / "planes.csv").read_text() != (tables / "planes.csv").read_text()


def test_cases_are_named_the_same_wherever_the_folder_lies(tables: Path) -> None:
    rows = read(tables / "planes.csv")
    dataset = own_dataset(tables / "planes.csv", "val", PREPARE)
    assert [sample["case"] for sample in dataset] == [Path(row["file"]).stem for row in rows if row["split"] == "val"]


def test_a_folder_without_labels_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data"):
        prepare(tmp_path, tmp_path / "out")


def test_the_interval_widens_when_images_of_a_subject_agree() -> None:
    hits = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0], 5)
    single = bootstrap(lambda x: float(x.mean()), [hits], [str(i) for i in range(40)])
    grouped = bootstrap(lambda x: float(x.mean()), [hits], [str(i // 5) for i in range(40)])
    assert grouped[1] - grouped[0] > 1.5 * (single[1] - single[0])
    assert single[0] < 0.5 < single[1]


def test_balanced_accuracy_weighs_the_classes_alike() -> None:
    assert balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])) == 0.5


def test_chance_counts_the_gallery_of_each_subject() -> None:
    assert chance_of_reidentification(["a", "b", "c", "d"], 1) == pytest.approx(1 / 4)
    assert chance_of_reidentification(["a", "a", "b", "c"], 1) == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4)


def test_no_case_has_no_share() -> None:
    assert share([], []) == {"count": 0, "of": 0}


def test_hits_that_agree_leave_as_much_open_as_there_are_subjects() -> None:
    assert share([True, True, True], ["a", "b", "b"])["interval"] == pytest.approx([0.025**0.5, 1.0])
    low, high = share([True, False, True, False], ["a", "b", "c", "d"])["interval"]
    assert low < 0.5 < high


class Brightness(torch.nn.Module):
    """Calls bright images the target."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        level = image.mean((1, 2, 3))
        return torch.stack([-8 * level, 8 * level], dim=1)


def make_result(inputs: torch.Tensor, pred: torch.Tensor, unchanged: list[bool]) -> Counterfactual:
    count = len(inputs)
    judge = Brightness()
    path = torch.stack([inputs, pred], dim=1)
    confidences = torch.stack([judge(image).softmax(1)[:, 1] for image in (inputs, pred)], dim=1)
    flipped = (judge(pred).argmax(1) == 1) & ~torch.tensor(unchanged)
    numbers = torch.full((count,), 7)
    return Counterfactual(
        pred, path, confidences, torch.ones(count).long(), numbers, flipped, torch.tensor(unchanged), numbers.float(),
        numbers, numbers[:, None].float(),
    )  # fmt: skip


def test_measures_what_happened_and_leaves_the_unchanged_out(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 1, 8, 8, generator=random) * 0.2 - 0.6
    inputs[3] = 0.5
    pred = inputs.clone()
    pred[0] += 1.2  # flips clearly
    pred[1] += 0.502 - float(inputs[1].mean()) - 0.5  # flips by a hair
    images = Images(inputs, torch.zeros(4).long(), ["a", "b", "c", "d"], list("wxyz"))
    results = [make_result(inputs[:2], pred[:2], [False, False]), make_result(inputs[2:], pred[2:], [False, True])]
    segmenter = torch.nn.Conv2d(1, 2, 1)
    segmenter.weight.data = torch.tensor([-1.0, 1.0])[:, None, None, None]
    segmenter.bias.data = torch.tensor([0.0, 2.0])
    figures = measure(images, results, Brightness(), Brightness(), segmenter)
    assert (figures["inputs"], figures["already_target"]) == (4, 1)
    assert (figures["flipped"]["count"], figures["flipped"]["of"]) == (2, 3)
    assert figures["judge"]["flips_called_target"]["count"] == 2
    assert figures["survival"]["all"]["of"] == 2
    assert figures["identity"]["classifier"]["rank_3"] == 1.0
    assert figures["identity"]["classifier"]["chance"] == 1.0  # three images, three looked at
    assert figures["head_dice"]["mean"] == pytest.approx(1.0)
    assert figures["grid_difference"] == pytest.approx(float((pred - inputs)[:3].abs().mean()))

    accuracy = {"balanced_accuracy": 0.7, "interval": [0.6, 0.8], "recalled": {"0": [3, 4], "1": [2, 4]}}
    accuracy |= {"images": 8, "subjects": 5, "mean_probability_of_real_targets": 0.9}
    whole = {"classifier": accuracy, "judge": accuracy, "counterfactuals": figures, "seconds_per_input": 1.0}
    whole["without_guidance_by_the_class"] = figures
    whole = json.loads(json.dumps(whole))
    assert "| flipped | 2 of 3 (67 %;" in table(whole)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    insert(page, whole)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        insert(page, whole)
