# SPDX-License-Identifier: Apache-2.0
"""A run's own results: what preprocessing removed is no effect of the counterfactual, and truth is found by name."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import medcf
from medcf.evaluation.__main__ import main
from medcf.evaluation.score import score_table
from medcf.phantoms import write_demo

QUICK = {"device": "cpu", "amp": False, "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads with burned-in text that a method returns as they are: ``in``, ``truth`` and ``out``."""
    folder = tmp_path_factory.mktemp("run")
    write_demo(folder / "in", count=2, label=0, overlays=True, truth_dir=folder / "truth", formats=("png", "nifti"))
    explain = medcf.load("diffice", method="unchanged", **QUICK)
    assert all(isinstance(each, medcf.CaseResult) for each in explain.run(folder / "in", folder / "out"))
    return folder


@pytest.fixture
def results(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "out", tmp_path / "out"))


def load(path: Path) -> np.ndarray:
    return nib.load(path).get_fdata()


def scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_scores(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_returning_the_input_has_exactly_no_effect_although_its_text_was_removed(run: Path, tmp_path: Path) -> None:
    rows = scores(run / "out")
    assert all(float(row["overlay_fraction"]) > 0 for row in rows)
    found = score_table(run / "out", truth=run / "truth")
    assert (found["cases"], found["failures"], found["left_out"]) == (2, [], [])
    figures = {name: figure["mean"] for name, figure in found["figures"].items()}
    assert (figures["effectiveness"], figures["amplification"], figures["mse"]) == (0, 0, 0)
    assert (figures["relative_truth_error"], figures["truth_similarity_gain"], figures["flipped"]) == (1, 0, 0)
    table = tmp_path / "naive.csv"
    lines = [f"{row['file']},{run / 'out' / row['case'] / 'counterfactual.nii.gz'}" for row in rows]
    table.write_text("\n".join(["input,counterfactual", *lines]))
    assert score_table(table)["figures"]["mse"]["mean"] > 0.01  # the removed text, next to the files as they came


def test_the_effect_on_the_truth_is_measured_from_the_cleaned_original(results: Path, run: Path) -> None:
    for row in scores(results):
        case = results / row["case"]
        original = nib.load(case / "original.nii.gz")
        truth = np.asarray(Image.open(run / "truth" / f"{row['case']}_standard.png")).T[..., None] / 255
        half = (original.get_fdata() + truth) / 2
        nib.save(nib.Nifti1Image(half.astype(np.float32), original.affine), case / "counterfactual.nii.gz")
    figures = score_table(results, truth=run / "truth")["figures"]
    assert figures["effectiveness"]["mean"] == pytest.approx(0.5, abs=0.01)
    assert figures["amplification"]["mean"] == pytest.approx(0, abs=0.02)


def test_the_written_original_is_the_counterfactual_without_its_difference(run: Path) -> None:
    for row in scores(run / "out"):
        case = run / "out" / row["case"]
        original = load(case / "original.nii.gz")
        np.testing.assert_array_equal(original, load(case / "counterfactual.nii.gz"))  # the input, unchanged
        np.testing.assert_array_equal(original, load(case / "trajectory.nii.gz")[..., 0])
        marked = medcf.read(row["file"]).as_tensor().numpy().mean(0)[..., None]
        assert np.abs(original - marked).max() > 0.3  # its text is removed
        assert b"SYNTHETIC" not in bytes(nib.load(case / "original.nii.gz").header["descrip"])


def test_cases_already_of_the_target_class_are_left_out_and_counted(results: Path, run: Path, capsys) -> None:
    rows = scores(results)
    write_scores(results, [{**rows[0], "unchanged": "True"}, rows[1]])
    out = results.parent / "scores.json"
    assert main([str(results), "--truth", str(run / "truth"), "--by", "format", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 cases of 1 subjects" in printed
    assert "left out, already of the target class: 1" in printed
    assert json.loads(out.read_text())["left_out"] == [rows[0]["case"]]
    assert f"format = {rows[1]['format']}" in printed


def test_a_case_without_files_or_truth_is_one_line_and_the_others_go_on(results: Path, run: Path, capsys) -> None:
    first, second = (row["case"] for row in scores(results))
    only = Path(shutil.copytree(run / "truth", results.parent / "only"))
    (only / f"{first}_standard.png").unlink()
    assert main([str(results), "--truth", str(only)]) == 0
    assert f"holds no true image of {first}: name it {first}.png" in capsys.readouterr().out
    shutil.copy(only / f"{second}_standard.png", only / f"{second}_other.png")
    (only / f"{first}.png").write_bytes((run / "truth" / f"{first}_standard.png").read_bytes())
    assert main([str(results), "--truth", str(only)]) == 0  # the exact name needs no guess
    printed = capsys.readouterr().out
    assert f"several true images of {second} ({second}_other.png, {second}_standard.png): keep one" in printed
    (results / second / "original.nii.gz").unlink()
    assert main([str(results)]) == 0
    assert f"{second}: holds no original.nii.gz: run it again with --overwrite True" in capsys.readouterr().out


def test_what_is_no_results_folder_or_no_truth_is_named_with_a_remedy(results: Path, tmp_path: Path, capsys) -> None:
    def refusal(*arguments: object) -> str:
        with pytest.raises(SystemExit):
            main([str(each) for each in arguments])
        return capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "empty").mkdir()
    assert "is a folder without scores.csv: name the output_dir of a finished run" in refusal(tmp_path / "empty")
    assert "does not exist: check the path" in refusal(results, "--truth", tmp_path / "none")
    Image.new("L", (8, 8)).save(tmp_path / "empty" / "stranger.png")
    message = refusal(results, "--truth", tmp_path / "empty")
    assert "holds no true image of any case (stranger is there, demo-" in message
    assert message.endswith("name them like the inputs")
    assert "leave out dataset_dir" in refusal(results, "--dataset_dir", tmp_path)
    (tmp_path / "table.csv").write_text("input,counterfactual\na.png,b.png\n")
    assert "a column 'truth' instead" in refusal(tmp_path / "table.csv", "--truth", tmp_path)
    for case in scores(results):
        (results / case["case"] / "original.nii.gz").unlink()
    assert "hold no original.nii.gz: run it again" in refusal(results)
