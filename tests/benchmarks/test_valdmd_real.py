# SPDX-License-Identifier: Apache-2.0
"""Real radiographs: nobody is trained on and explained, what is done is not done again, results lie on their pixels."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.studies import uncomputed
from benchmarks.counterfactual.tables import read_csv
from benchmarks.valdmd.real import main
from benchmarks.valdmd.real_cases import VOLUMES, in_own_geometry
from benchmarks.valdmd.real_evaluate import RealTask, axiom_section, load_task, measure
from benchmarks.valdmd.real_sets import DEMO, STEPS, Trained, at_most, command, prepare, train
from medcf.bundle import bundle_folder
from medcf.bundle.options import check_options
from medcf.phantoms import ChestDataset

SUBJECTS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write chests of 96 x 64 pixels, two pictures of each subject, labeled as the real ones are."""
    root = tmp_path_factory.mktemp("radiographs")
    (root / "images").mkdir()
    data = ChestDataset("test", SUBJECTS, balance=(1.0, 0.0, 0.0, 1.0), progress=False, size=(64, 64), spacing=None)
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "subject", "label_pneumonia", "etiology"])
        for number in range(SUBJECTS):
            item, sick = data[number], int(data[number]["label"] > 0)
            gray = ((item["image"][0].numpy() + 1) * 127.5).astype(np.uint8)
            for view, size in enumerate(((64, 96), (80, 80))):
                name = f"images/{number}_{view}.png"
                Image.fromarray(gray).resize(size).save(root / name)
                writer.writerow([name, f"s{number}", sick, ("none", "virus", "bacteria")[sick * (1 + number % 2)]])
    return root


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_nobody_is_in_two_splits_and_both_classes_are_in_all(folder: Path, tmp_path: Path) -> None:
    counts = prepare(folder, tmp_path / "images.csv")
    rows = read(tmp_path / "images.csv")
    people = {
        split: {row["subject"] for row in rows if row["split"] == split} for split in ("train", "oracle", "val", "test")
    }
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == SUBJECTS
    assert len(people["train"]) == SUBJECTS // 2
    assert len(people["oracle"]) == SUBJECTS // 4
    assert sum(counts.values()) == len(rows) == 2 * SUBJECTS
    assert len(counts) == 8
    text = (tmp_path / "images.csv").read_text()
    prepare(folder, tmp_path / "images.csv")
    assert (tmp_path / "images.csv").read_text() == text


def test_a_folder_without_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"labels\.csv does not exist"):
        prepare(tmp_path, tmp_path / "images.csv")


@pytest.mark.parametrize("name", STEPS)
def test_every_training_is_one_that_the_configs_know(tmp_path: Path, name: str) -> None:
    trained = Trained(tmp_path / "images.csv", tmp_path / "models", bundle_folder("valdmd") / "models")
    line = command(at_most(5)[name], name, trained, tmp_path)
    check_options(line[2:])  # refuses ids that the configs do not have
    assert line[line.index("--export_path") + 1] == str(tmp_path / "models" / f"{name}.pt")
    assert ("--pretrained" in line) == (name in ("autoencoder", "model"))


def test_trainings_that_are_done_are_kept_and_other_options_begin_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def pretend(line: list[str], **_options: Any) -> None:
        path = Path(line[line.index("--export_path") + 1])
        begun.append(path.stem)
        path.touch()

    monkeypatch.setattr("benchmarks.valdmd.real_sets.subprocess.run", pretend)
    prepare(folder, tmp_path / "images.csv")
    first = train(tmp_path / "images.csv", tmp_path)
    assert begun == list(STEPS)
    assert all((first.models / name).is_file() for name in DEMO)
    (first.models / "model.pt").unlink()
    assert train(tmp_path / "images.csv", tmp_path) == first
    assert begun == [*STEPS, "model"]
    assert train(tmp_path / "images.csv", tmp_path, at_most(3)).models != first.models
    assert begun == [*STEPS, "model", *STEPS]


def write_results(folder: Path, gray: np.ndarray, spacing: float = 1.0, shift: float = 0.0) -> None:
    original, difference = gray.T[..., None].astype(np.float32), np.full((*gray.T.shape, 1), 0.1, np.float32)
    values = {"original": original, "difference": difference, "counterfactual": (original + 0.1).clip(0, 1) + shift}
    for name in VOLUMES:
        image = nib.Nifti1Image(values.get(name, difference), np.diag([-spacing, -spacing, 1, 1]))
        nib.save(image, folder / f"{name}.nii.gz")


def test_only_results_on_the_files_own_pixels_that_add_up_are_in_its_geometry(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    gray, file = pixels / 255, tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    for right in (gray, 1 - gray):  # the other way round as in MONOCHROME1
        write_results(tmp_path, right)
        assert in_own_geometry(file, tmp_path)
    for wrong in (gray.T, gray[::-1], gray[:, :-1]):
        write_results(tmp_path, wrong)
        assert not in_own_geometry(file, tmp_path)
    for option in ({"spacing": 0.5}, {"shift": 0.05}):
        write_results(tmp_path, gray, **option)
        assert not in_own_geometry(file, tmp_path)


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run the study on the chests, as short as it gets; return the folders of its tables and of its work."""
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    (out / "valdmd.md").write_text("<!-- real_networks: begin -->\n<!-- real_networks: end -->\n")
    given = ["--dataset_dir", str(folder), "--out", str(out), "--work", str(work), "--iterations", "2", "--count", "3"]
    main([*given, "--study", "networks", "cases"])
    return out, work


@pytest.fixture(scope="module")
def task(done: tuple[Path, Path]) -> RealTask:
    models = next((done[1] / "valdmd_real").glob("*/models"))
    return load_task(Trained(done[1] / "valdmd_real" / "images.csv", models, bundle_folder("valdmd") / "models"), 3)


@pytest.mark.long
def test_the_study_runs_from_a_folder_to_its_tables(done: tuple[Path, Path]) -> None:
    out, work = done
    labels, rows = read_csv(out / "valdmd_real_networks.csv")
    assert labels == ["f", "judge", "autoencoder", "the phantoms' autoencoder"]
    assert rows[0]["accuracy"].count == sum(row["split"] == "test" for row in read(work / "valdmd_real" / "images.csv"))
    assert rows[2]["floor"].value > rows[2]["difference_floor"].value > 0
    assert rows[2]["floor"].value != rows[3]["floor"].value
    assert "| f |" in (out / "valdmd.md").read_text()
    cases = read(out / "valdmd_real_cases.csv")
    assert {case["weights"] for case in cases} == {"the bundle's", "fine-tuned"}
    assert {case["own geometry"] for case in cases} == {"yes"}


@pytest.mark.slow
def test_the_true_other_class_beats_doing_nothing_by_the_papers_tables(task: RealTask) -> None:
    healthy = task.healthy[: len(task.cases)]

    def judge(images: torch.Tensor) -> torch.Tensor:  # knows the normal ones by heart
        away = (images[:, None] - task.healthy[None]).abs().flatten(2).mean(2).amin(1)
        return torch.stack([0.01 - away, away - 0.01], dim=1)

    known = replace(task, classifier=judge, judge=Judge(judge))
    good, idle = (measure(known, uncomputed(task.cases, images)) for images in (healthy, task.cases.image))
    assert (good["judge"].value, idle["judge"].value) == (1, 0)
    assert good["flips"].value == good["confirmed"].value == 1
    assert idle["judged_made"].value == pytest.approx(0, abs=1e-6)
    assert idle["judged_real"].value == good["judged_real"].value > 0
    assert idle["judged_healthy"].value == pytest.approx(idle["judged_real"].value)
    assert good["judged_healthy"].value < idle["judged_healthy"].value
    assert good["judged_gap"].value == pytest.approx(abs(good["judged_made"].value - good["judged_real"].value))
    assert idle["ssim"].value == idle["ms_ssim"].value == pytest.approx(1)
    assert good["ssim"].value < 0.9
    assert idle["below"].value == 1


class Judge(torch.nn.Module):
    """A judge whose class scores are those of a function, with features."""

    def __init__(self, scores: Any) -> None:
        super().__init__()
        self.scores, self.class_layers = scores, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity())

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., ::32, ::32]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores(images)


@pytest.mark.long
def test_axioms_are_measured_of_both_classes(task: RealTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.counterfactual.axiom_study.REPEATS", (1,))
    monkeypatch.setattr("benchmarks.counterfactual.axiom_study.CYCLES", (1,))
    section = axiom_section(task, Setup(), 2)
    assert len(section.rows) == 2
    assert section.rows[1]["composition_1"].value > 0
    assert section.rows[1]["reversibility_1"].count == 2
