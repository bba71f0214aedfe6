# SPDX-License-Identifier: Apache-2.0
"""Counterfactuals beside the images of a table: their label, subject and split, and nothing of other splits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcf.inference.run_folder import RunFolder
from medcf.training.augmented import augmented_datalist
from medcf.training.datasets import own_dataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write six pictures of three subjects, and a table."""
    rows = []
    for index in range(6):
        Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
        split = "train" if index < 4 else "val"
        rows.append(
            {"file": f"{index}.png", "label": "CN" if index % 2 else "AD", "subject": f"s{index // 2}", "split": split}
        )
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def run_over(folder: Path, images: Path, target: int, flipped: bool = True) -> Path:
    """Write what an inference leaves of every picture."""
    RunFolder(folder).open([])
    for index in range(6):
        case = folder / f"case{index}"
        case.mkdir()
        row = {"file": str(images / f"{index}.png"), "target": target, "unchanged": index % 2 == target, "rows": 8}
        (case / "case.json").write_text(json.dumps({**row, "flipped": flipped}))
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(case / "counterfactual.nii.gz", format="PNG")
    return folder


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_counterfactuals_of_training_images_get_the_other_class_and_their_subject(images, tmp_path):
    runs = [run_over(tmp_path / f"to{target}", images, target) for target in (0, 1)]
    found = table(augmented_datalist(images / "table.csv", runs, tmp_path / "out" / "list.csv"))
    assert len(found) == 6 + 4
    made = [row for row in found if row["file"].endswith("counterfactual.nii.gz")]
    assert {row["split"] for row in made} == {"train"}
    originals = {Path(row["file"]).stem: row for row in found if row not in made}
    for row in made:
        explained = originals[Path(row["file"]).parent.name.removeprefix("case")]
        assert row["label"] == {"AD": "CN", "CN": "AD"}[explained["label"]]
        assert row["subject"] == explained["subject"]


def test_no_runs_give_the_images_alone(images, tmp_path):
    found = table(augmented_datalist(images / "table.csv", [], tmp_path / "list.csv"))
    assert [row["label"] for row in found] == ["AD", "CN"] * 3
    val = own_dataset(tmp_path / "list.csv", "val", lambda item: {**item, "image": np.zeros((1, 8, 8))}, targets=())
    assert len(val) == 2


def test_only_counterfactuals_that_flipped_count_unless_asked_for(images, tmp_path):
    run = run_over(tmp_path / "to0", images, 0, flipped=False)
    with pytest.raises(ValueError, match="reached its class"):
        augmented_datalist(images / "table.csv", run, tmp_path / "list.csv")
    found = table(augmented_datalist(images / "table.csv", run, tmp_path / "list.csv", flipped=False))
    assert len(found) == 6 + 2


def test_runs_over_other_images_are_refused(images, tmp_path):
    run = run_over(tmp_path / "to0", tmp_path / "elsewhere", 0)
    for marker in run.glob("*/case.json"):
        marker.write_text(marker.read_text().replace(".png", "_other.png"))
    with pytest.raises(ValueError, match="explain no training image"):
        augmented_datalist(images / "table.csv", run, tmp_path / "list.csv")
