# SPDX-License-Identifier: Apache-2.0
"""The study's parts: equal steps for every arm, paired differences, rare classes, and which images an arm gets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks.fetalplanes.__main__ import ARMS, PAIRS, main
from benchmarks.fetalplanes.real import ARMS as REAL_ARMS
from benchmarks.fetalplanes.real import deal
from benchmarks.fetalplanes.real import main as study_real
from benchmarks.fetalplanes.sets import GUIDANCE
from benchmarks.fetalplanes.study import Arm, Recipe, Result, Sets, Study, subset
from benchmarks.fetalplanes.tables import CLASSES, difference_table, ensemble_rows, rare, rows_of
from benchmarks.fulora.images import Images
from benchmarks.fulora.real_sets import Plane
from medcf.data import StoreWriter
from medcf.evaluation.classification import Predictions
from medcf.runtime.atomic import write_csv
from medcf.training.regimes import REGIMES
from tests.benchmarks.test_fulora import real_planes


def kinds(count: int, seed: int, classes: int = 2) -> Images:
    """Images that are dark or bright by their class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % classes
    image = torch.rand(count, 1, 32, 32, generator=generator) * 0.2 + label[:, None, None, None] * 0.6 - 0.5
    return Images(image, label)


def result(arm: str, seed: int, found: list[int], truth: list[int]) -> Result:
    values = np.eye(6, dtype=np.float32)[found]
    predictions = Predictions(values, values, np.asarray(truth))
    return Result("n", arm, seed, predictions, predictions)


def test_rare_classes_are_those_with_less_than_a_tenth_of_the_images():
    assert rare([0.2, 0.9, 0.6, 0.0, 1.0, 1.0], [5, 40, 9, 0, 20, 26]) == pytest.approx(0.4)
    assert np.isnan(rare([1.0, 1.0], [50, 50]))


def test_differences_are_paired_and_rare_classes_are_told_apart():
    truth = [0, 0, 1, 1, 1, 1]
    wrong = [[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1]]
    results = [result("real", seed, one, truth) for seed, one in enumerate(wrong)]
    results += [result("final", seed, truth, truth) for seed in range(3)]
    rows = rows_of(results, [2, 40, 0, 0, 0, 0])
    assert [row["rare"] for row in rows] == [0.5, 0.0, 0.5, 1.0, 1.0, 1.0]
    assert rows[0]["recall Brain"] == 1.0
    text = difference_table(rows, ARMS, [("final", "real")])
    exact = ttest_rel([1.0] * 3, [5 / 6, 4 / 6, 4 / 6])
    low, high = exact.confidence_interval()
    assert f"{1 - 13 / 18:+.3f} [{low:+.3f}, {high:+.3f}]" in text
    assert f"{ARMS['final'].label} minus {ARMS['real'].label}" in text


def test_a_vote_is_better_than_its_members_where_they_err_apart():
    truth = list(range(6)) * 4
    members = []
    for seed in range(3):
        found = list(truth)
        found[seed * 8 : seed * 8 + 8] = [(one + 1) % 6 for one in truth[seed * 8 : seed * 8 + 8]]
        members.append(result("real", seed, found, truth))
    line = ensemble_rows(members, ARMS, ["real", "final"]).splitlines()[2]
    assert line.startswith(f"| {ARMS['real'].label} | 3 | 0.667 | 1.000 |")


def test_every_arm_is_a_regime_and_every_pair_exists():
    assert {arm.regime for arm in ARMS.values()} == set(REGIMES)
    assert all({arm, base} <= set(ARMS) for arm, base in PAIRS)
    needed = {name: any("synthetic" in stage.sources for stage in REGIMES[arm.regime]) for name, arm in ARMS.items()}
    assert {name for name, arm in ARMS.items() if arm.images is not None} == {name for name in needed if needed[name]}


def test_a_training_is_done_once_and_again_for_other_images(tmp_path, monkeypatch):
    arms = {"a": Arm("a", "mixed", "SYN")}
    done = []
    for seed in (1, 1, 2):
        sets = Sets(kinds(12, 0), kinds(6, 5), kinds(6, 6), {"SYN": kinds(12, seed)})
        (found,) = Study(arms, sets, Recipe(iterations=3, batch_size=4), tmp_path).run(["SonoNet-16"], ["a"], 1)
        done.append((tmp_path / "SonoNet-16_a_0" / "question.json").stat().st_mtime_ns)
    assert done[0] == done[1] < done[2]
    assert found.val.probabilities.shape == (6, 6)


def test_a_classifier_learns_in_a_regime(tmp_path):
    sets = Sets(kinds(24, 0), kinds(6, 5), kinds(40, 6), {"SYN": kinds(24, 1)})
    study = Study({"a": Arm("a", "final", "SYN")}, sets, Recipe(iterations=40, batch_size=8), tmp_path)
    (found,) = study.run(["SonoNet-16"], ["a"], 1)
    assert (found.test.probabilities.argmax(1) == found.test.label).mean() > 0.9


def test_a_subset_has_the_first_of_each_class():
    images = kinds(20, 0)
    part = subset(images, 3)
    assert torch.bincount(part.label).tolist() == [3, 3]
    assert torch.equal(part.image[:3], images.image[images.label == 0][:3])


@pytest.fixture
def bundle(monkeypatch):
    """Commands that would run the bundle; what they make are a file, a store of noise, and every second one kept."""
    commands = []

    def run(command):
        ids = dict(zip([part[2:] for part in command[4::2]], command[5::2], strict=True))
        commands.append(ids)
        folder = Path(ids["output_dir"])
        if "filter.json" in ids["config_file"]:
            rows = [{"index": index, "kept": index // 6 % 2 == 0} for index in range(6 * int(ids["count"]))]
            write_csv(folder / "filtered.csv", rows)
        elif "export_path" in ids:
            Path(ids["export_path"]).parent.mkdir(parents=True, exist_ok=True)
            Path(ids["export_path"]).touch()
        else:
            rows = [{"label": label} for _ in range(int(ids["count"])) for label in range(6)]
            writer = StoreWriter(folder, rows, shape=(1, 32, 32))
            writer.open()
            generator = torch.Generator().manual_seed(len(commands))
            for number, members in enumerate(writer.shards()):
                writer.write(number, torch.rand(len(members), 1, 32, 32, generator=generator) * 2 - 1)
            writer.close()

    monkeypatch.setattr("benchmarks.fetalplanes.sets.run", run)
    return commands


def test_the_study_makes_what_its_arms_need_and_writes_its_tables(tmp_path, bundle):
    options = ["--arms", "real", "classifier", "amount_many", "good", "bad", "final_other", "--seeds", "2"]
    options += ["--iterations", "2", "--num-real", "40", "--num-val", "12", "--num-test", "24"]
    options += ["--num-synthetic", "24", "--num-many", "48", "--batch-size", "4"]
    main([*options, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    trained = [ids for ids in bundle if "export_path" in ids]
    assert [Path(ids["export_path"]).name for ids in trained] == ["model.pt", "guide.pt"]
    assert {(ids["num_train"], ids["phantom_seed"]) for ids in trained} == {("40", "41")}
    drawn = [ids for ids in bundle if "export_path" not in ids and "filter.json" not in ids["config_file"]]
    scales = [(ids["guidance_scale"], ids["classifier_scale"], ids["count"]) for ids in drawn]
    assert scales == [("1.0", "0.0", "8"), ("1.0", "1.0", "4"), ("1.0", "0.0", "4")]
    assert "bundles" in drawn[2]["weights#model"]
    rows = list(csv.DictReader((tmp_path / "out" / "fetalplanes_study.csv").read_text().splitlines()))
    assert len(rows) == 12
    page = (tmp_path / "out" / "fetalplanes_study.md").read_text()
    assert "SYN_MANY 48" in page
    assert "Filters keep 24 of 48" in page
    assert "SYN_GOOD 24" in page
    assert f"{ARMS['good'].label} minus {ARMS['bad'].label}" in page
    assert (tmp_path / "out" / "fetalplanes_study_confusion.png").is_file()


def test_guidance_is_off_by_one_of_two_or_both():
    assert [tuple(one.values()) for one in GUIDANCE.values()] == [(1, 0), (2, 0), (1, 1), (2, 1)]


def test_no_subject_is_on_two_sides():
    planes = [Plane(Path(f"{i}.png"), f"s{i // 3}", "x", "y", i % 5) for i in range(300)]
    parts = deal(planes)
    people = [{plane.subject for plane in members} for members in parts.values()]
    assert sum(map(len, parts.values())) == 300
    assert sum(map(len, people)) == len(set.union(*people))
    assert [round(len(members) / 30) for members in parts.values()] == [5, 2, 3]


def test_the_real_study_goes_on_from_the_phantoms_weights_with_the_training_subjects(tmp_path, bundle):
    data = real_planes(tmp_path / "data")
    options = ["--data", str(data), "--arms", "real", "classifier", "phantoms", "--seeds", "1", "--iterations", "2"]
    options += ["--num-synthetic", "20", "--batch-size", "4"]
    study_real([*options, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")])
    trained = [ids for ids in bundle if "export_path" in ids]
    table = list(csv.DictReader(Path(trained[0]["datalist"]).read_text().splitlines()))
    assert {row["split"] for row in table} == {"train", "val"}
    assert trained[0]["pretrained"].endswith("model.pt")
    assert "pretrained" not in trained[1]
    drawn = [ids for ids in bundle if "export_path" not in ids]
    assert {ids["classes"] for ids in drawn} == {"[0, 1, 2, 3, 5]"}
    page = (tmp_path / "out" / "fetalplanes_real.md").read_text()
    assert f"{REAL_ARMS['phantoms'].label} minus {REAL_ARMS['real'].label}" in page
    assert str(data) not in page
    rows = list(csv.DictReader((tmp_path / "out" / "fetalplanes_real.csv").read_text().splitlines()))
    assert {row["arm"] for row in rows} == {"real", "classifier", "phantoms"}
    assert f"recall {CLASSES[4]}" in rows[0]
