# SPDX-License-Identifier: Apache-2.0
"""Chest radiographs: the tables by subject, and the overlay that explains them, on made-up images."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from benchmarks.chest_xray.__main__ import main
from benchmarks.chest_xray.prepare import prepare

CONFIGS = Path(__file__).parents[2] / "bundles" / "diffice" / "configs"
SUBJECTS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 100 files; every third subject has several of them, a third have pneumonia."""
    data = tmp_path_factory.mktemp("data")
    (data / "images").mkdir()
    rows = [
        {
            "file": f"images/p{subject:02d}_{number}.jpeg",
            "subject": f"S{subject:02d}",
            "label_pneumonia": subject % 3 % 2,
        }
        for subject in range(SUBJECTS)
        for number in range(3 if subject % 3 == 0 else 1)
    ]
    with (data / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "etiology"], restval="unknown")
        writer.writeheader()
        writer.writerows(rows)
    for seed, row in enumerate(rows[:2]):
        pixels = np.random.default_rng(seed).integers(0, 256, (96, 120)).astype(np.uint8)
        Image.fromarray(pixels).save(data / row["file"])
    return data


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def tables(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    counts = prepare(folder, out)
    return {name: read(out / f"{name}.csv") for name in ("planes", "judge", "model")}, counts


def test_every_file_is_in_every_table_with_its_label(folder, tables):
    expected = {row["file"]: row["label_pneumonia"] for row in read(folder / "labels.csv")}
    for rows in tables[0].values():
        found = {str(Path(row["file"]).relative_to(folder.resolve())): row["label"] for row in rows}
        assert found == expected


def test_nobody_is_in_two_splits_of_a_table(tables):
    for rows in tables[0].values():
        splits = defaultdict(set)
        for row in rows:
            splits[row["subject"]].add(row["split"])
        assert len(splits) == SUBJECTS
        assert all(len(names) == 1 for names in splits.values())


def test_the_validation_subjects_are_the_same_everywhere_and_nobody_trains_on_them(tables):
    validation = [{row["subject"] for row in rows if row["split"] == "val"} for rows in tables[0].values()]
    assert validation[0]
    assert validation[0] == validation[1] == validation[2]


def test_classifier_and_judge_are_tested_on_different_subjects(tables):
    test = [{row["subject"] for row in tables[0][name] if row["split"] == "test"} for name in ("planes", "judge")]
    assert all(test)
    assert not test[0] & test[1]


def test_every_split_has_both_labels_in_about_the_same_share(tables):
    rows = tables[0]["planes"]
    overall = np.mean([int(row["label"]) for row in rows])
    for split in ("train", "val", "test"):
        share = np.mean([int(row["label"]) for row in rows if row["split"] == split])
        assert share == pytest.approx(overall, abs=0.12)


def test_the_counts_are_those_of_the_tables(tables):
    for name, rows in tables[0].items():
        for split in {row["split"] for row in rows}:
            assert tables[1][f"{name} {split}"] == sum(row["split"] == split for row in rows)


def test_the_split_depends_on_the_seed_alone(folder, tables, tmp_path):
    main(["--data", str(folder), "--out", str(tmp_path / "same")])
    assert read(tmp_path / "same" / "planes.csv") == tables[0]["planes"]
    prepare(folder, tmp_path / "other", seed=1)
    assert read(tmp_path / "other" / "planes.csv") != tables[0]["planes"]


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        prepare(tmp_path, tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\n")
    with pytest.raises(ValueError, match="label_pneumonia, subject"):
        prepare(tmp_path, tmp_path)


@pytest.mark.bundle
def test_the_overlay_explains_radiographs_with_two_networks_alone(folder, tmp_path):
    parser = ConfigParser()
    parser.read_config([CONFIGS / "inference.json", CONFIGS / "chest_xray.json"])
    for name, definition in (("model", "network_def"), ("classifier", "predictor_def")):
        torch.save(parser.get_parsed_content(definition).state_dict(), tmp_path / f"{name}.pt")
    options = {
        "bundle_root": str(CONFIGS.parent),
        "models_dir": str(tmp_path),
        "dataset_dir": str(folder / "images"),
        "output_dir": str(tmp_path / "out"),
        "device": "cpu",
        "progress": False,
        "inferer#num_inference_steps": 10,
        "inferer#num_iterations": 1,
    }
    parser.read_config([CONFIGS / "inference.json", CONFIGS / "chest_xray.json"])
    parser.update(options)
    for step in ("initialize", "run"):
        parser.get_parsed_content(step)
    scores = read(tmp_path / "out" / "scores.csv")
    assert {row["case"] for row in scores} == {"p00_0", "p00_1"}
    assert {row["target"] for row in scores} == {"0"}
    case = json.loads((tmp_path / "out" / "p00_0" / "case.json").read_text())
    assert not case.get("out_of_distribution")
    panel = np.asarray(Image.open(tmp_path / "out" / "p00_0" / "panel.png"))
    assert panel.std() > 10
