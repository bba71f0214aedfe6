# SPDX-License-Identifier: Apache-2.0
"""Anybody's table of counterfactuals: files in any format, failures row by row, and subgroups."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medcf.evaluation import Evidence, Measurement
from medcf.evaluation.__main__ import main
from medcf.evaluation.score import score_table
from medcf.metrics import Effectiveness, RelativeTruthError
from medcf.phantoms import PairedPhantomDataset

COUNT = 6
SHARE = 0.5  # of the true change that the counterfactuals make


def to_png(path: Path, image: np.ndarray) -> None:
    Image.fromarray(np.rint((image + 1) * 127.5).astype(np.uint8)).save(path)


def to_nifti(path: Path, image: np.ndarray, low: float = 0.0, high: float = 255.0) -> None:
    values = (image + 1) / 2 * (high - low) + low
    nib.save(nib.Nifti1Image(values.T[..., None].astype(np.float32), np.diag([-1.75, -1.75, 1, 1])), path)


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    return list(PairedPhantomDataset(split="val", count=COUNT, progress=False))


def counterfactual(item: dict[str, Any]) -> torch.Tensor:
    return item["image"] + SHARE * (item["image_true"] - item["image"])


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path: Path, pairs: list[dict[str, Any]]) -> Path:
    rows = []
    for index, item in enumerate(pairs):
        row: dict[str, Any] = {"case": item["case"], "subject": index % 5, "scanner": "AB"[index % 2]}
        row |= {"weeks": 20 + index, "flipped": index != 0}
        images = {"input": item["image"], "truth": item["image_true"], "counterfactual": counterfactual(item)}
        images |= {"own": item["image"] + 0.2 * (item["image_true"] - item["image"])}
        for name, image in images.items():
            # of every second case, the counterfactual is NIfTI in [0, 1] or in [-1, 1], the others PNG
            as_nifti = name == "counterfactual" and index % 2
            row[name] = f"{index}_{name}" + (".nii.gz" if as_nifti else ".png")
            if as_nifti:
                to_nifti(tmp_path / row[name], image[0].numpy(), *((0, 1) if index % 4 == 1 else (-1, 1)))
            else:
                to_png(tmp_path / row[name], image[0].numpy())
        for column, key in (("segmentation_input", "segmentation"), ("segmentation_truth", "segmentation_true")):
            row[column] = f"{index}_{column}.png"
            Image.fromarray(item[key][0].numpy().astype(np.uint8)).save(tmp_path / row[column])
        row["segmentation_counterfactual"] = row["segmentation_truth" if index else "segmentation_input"]
        rows.append(row)
    return write_table(tmp_path / "table.csv", rows)


def test_files_of_all_formats_give_the_figures_of_the_arrays(table: Path, pairs: list[dict[str, Any]]) -> None:
    found = score_table(table, structures={"cavum": 3})
    figures = found["figures"]
    assert (found["cases"], found["subjects"], found["failures"]) == (COUNT, 5, [])
    columns = [torch.stack([item[key] for item in pairs]) for key in ("image", "image_true")]
    pred = torch.stack([counterfactual(item) for item in pairs])
    for name, kind in (("effectiveness", Effectiveness), ("relative_truth_error", RelativeTruthError)):
        metric = kind()
        metric(pred, columns[1], image=columns[0])
        assert figures[name]["mean"] == pytest.approx(metric.aggregate(), abs=0.005), name
        assert figures[name]["interval"] == pytest.approx(metric.interval(groups=[0, 1, 2, 3, 4, 0]), abs=0.02)
    assert figures["effectiveness"]["mean"] == pytest.approx(SHARE, abs=0.005)
    assert figures["amplification"]["mean"] == pytest.approx(0, abs=0.03)
    assert figures["class_effectiveness"]["mean"] == pytest.approx(SHARE - 0.2, abs=0.005)
    assert figures["error_where_structures_change"]["mean"] == pytest.approx((1 - SHARE) ** 2, abs=0.01)
    assert figures["flipped"]["mean"] == pytest.approx(5 / 6)
    assert figures["dice_cavum"]["mean"] > 0.8
    assert "error_in_organ" not in figures  # no column organ
    assert found["per_case"][0]["effectiveness"] == pytest.approx(SHARE, abs=0.01)


def test_a_bad_row_is_one_line_and_the_others_go_on(table: Path, tmp_path: Path, capsys) -> None:
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    rows[1]["counterfactual"] = "missing.png"
    to_png(tmp_path / "small.png", np.zeros((10, 12)))
    rows[2]["truth"] = "small.png"
    rows[3]["counterfactual"] = ""
    rows[4]["flipped"] = "perhaps"
    (tmp_path / "damaged.png").write_bytes((tmp_path / rows[5]["input"]).read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("no image")
    names = ("damaged.png", "folder", "text.png")
    rows += [{**rows[0], "input": name} for name in names] + [{**rows[0], "counterfactual": name} for name in names]
    write_table(table, rows)
    out = tmp_path / "scores.json"
    assert main([str(table), "--metrics", "effectiveness", "ssim", "--output", str(out)]) == 0
    shown, written = capsys.readouterr().out, json.loads(out.read_text())
    assert written["cases"] == 2
    assert [each["row"] for each in written["failures"]] == [2, 3, 4, 5, *range(7, 13)]
    lines = [line for line in shown.splitlines() if line.startswith("row ")]
    assert len(lines) == 10
    assert "missing.png" in lines[0]
    assert "small.png: is on another grid than its input (12 x 10 instead of 80 x 64)" in lines[1]
    assert "Resample it" in lines[1]
    assert "'counterfactual' is empty" in lines[2]
    assert "'perhaps'" in lines[3]
    for line, name in zip(lines[4:], names * 2, strict=True):
        assert name in line
        assert line.endswith(".")  # a reason, and what to do about it
    assert set(written["figures"]) == {"effectiveness", "ssim"}


def test_a_metric_that_breaks_on_one_row_keeps_the_other_rows_and_figures(table: Path, monkeypatch, capsys) -> None:
    update, calls = Measurement.update, []

    def breaking(self: Measurement, cases: Evidence) -> None:
        if self.heading == "ssim":
            calls.append(cases["case"])
            if len(calls) == 2:
                raise RuntimeError("kernel larger than the image")
        update(self, cases)

    monkeypatch.setattr(Measurement, "update", breaking)
    assert main([str(table), "--metrics", "ssim", "mse"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[-2] for line in printed.splitlines()[1:3]] == [str(COUNT - 1), str(COUNT)]
    assert "ssim: RuntimeError: kernel larger than the image. Check its images" in printed


def test_subgroups_have_their_own_counts_and_quantiles_are_those_of_numbers(table: Path, capsys) -> None:
    found = score_table(table, ["effectiveness", "flipped"], by=["scanner", "weeks"])
    scanners = found["by"]["scanner"]
    assert {name: group["flipped"]["cases"] for name, group in scanners.items()} == {"A": 3, "B": 3}
    assert scanners["A"]["flipped"]["mean"] == pytest.approx(2 / 3)
    assert scanners["B"]["flipped"]["mean"] == 1
    assert scanners["B"]["flipped"]["interval"][0] < 0.5  # three of three subjects are no certainty
    assert list(found["by"]["weeks"]) == [str(week) for week in range(20, 26)]
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    write_table(table, [{**row, "weeks": 20 + number} for number, row in enumerate(rows * 2)])
    binned = score_table(table, ["effectiveness"], by=["weeks"], bins=2)["by"]["weeks"]
    assert {name: group["effectiveness"]["cases"] for name, group in binned.items()} == {
        "20 to 25.5": 6,
        "25.5 to 31": 6,
    }
    main([str(table), "--metrics", "effectiveness", "--by", "scanner"])
    assert "scanner = B\neffectiveness" in capsys.readouterr().out


def test_few_subjects_get_no_interval_and_the_table_says_so(table: Path, tmp_path: Path, capsys) -> None:
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    write_table(table, [{**row, "subject": number % 4} for number, row in enumerate(rows)])
    out = tmp_path / "scores.json"
    main([str(table), "--metrics", "effectiveness", "flipped", "--output", str(out)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "n too small" in lines["effectiveness"]
    assert json.loads(out.read_text())["figures"]["effectiveness"]["interval"] is None


def test_volumes_are_compared_on_one_position_and_in_the_units_of_the_input(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(100, 30, (12, 14, 12)).astype(np.float32)
    truth = before.copy()
    truth[3:8] += 60
    affine = np.diag([4.0, 4, 4, 1])
    files = {"input": before, "truth": truth, "counterfactual": before + 0.75 * (truth - before)}
    for name, volume in files.items():
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    moved = affine.copy()
    moved[0, 3] = 20
    nib.save(nib.Nifti1Image(truth, moved), tmp_path / "moved.nii.gz")
    row = {name: f"{name}.nii.gz" for name in files}
    table = write_table(tmp_path / "volumes.csv", [row, row | {"truth": "moved.nii.gz"}])
    found = score_table(table)
    assert found["figures"]["effectiveness"]["mean"] == pytest.approx(0.75, abs=1e-5)
    assert found["figures"]["relative_truth_error"]["mean"] == pytest.approx(0.25**2, abs=1e-5)
    assert [each["reason"] for each in found["failures"]] == ["has another position or orientation than its input"]


def test_flips_follow_from_classes_among_inputs_of_another_class(table: Path) -> None:
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    classes = [("a", "b"), ("a", "a"), ("b", "b"), ("a", "b"), ("a", "b"), ("a", "b")]
    for row, (before, after) in zip(rows, classes, strict=True):
        del row["flipped"]
        row |= {"target": "b", "class_input": before, "class_counterfactual": after}
    write_table(table, rows)
    figure = score_table(table, ["flipped"])["figures"]["flipped"]
    assert (figure["mean"], figure["cases"]) == (0.8, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "effectivness"], "'effectivness' is not one of the metrics"),
        (["--metrics", "error_in_organ"], "Add the column 'organ'"),
        (["--metrics", "flip_ratio"], "'logits(pred)' is absent"),
        (["--by", "gender"], "no column 'gender'"),
        (["--structures", "cavum"], "'cavum' names no label: write NAME=LABEL"),
        (["--output", "."], "is a folder: choose another file with --output"),
    ],
)
def test_what_the_table_cannot_tell_is_named(table: Path, capsys, arguments, message) -> None:
    with pytest.raises(SystemExit):
        main([str(table), *arguments])
    assert message in capsys.readouterr().err


def test_a_table_without_counterfactuals_and_a_foreign_output_are_refused(table: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.csv"
    other.write_text("input,prediction\na.png,b.png\n")
    with pytest.raises(SystemExit):
        main([str(other)])
    assert "has no column 'counterfactual' (its columns: input, prediction)" in capsys.readouterr().err
    for name, content, message in (
        ("none.csv", None, "does not exist: give a CSV or JSON file"),
        ("image.csv", b"\x89PNG\r\n\x1a\n\xff\x00", "cannot be parsed"),
        ("broken.json", b"[{", "cannot be parsed"),
        ("text.json", b"1", "must hold a list of objects"),
        ("empty.csv", b"input,counterfactual\n", "has no rows: list at least one file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SystemExit):
            main([str(tmp_path / name)])
        assert re.search(rf"error: table '.*{name}' {message}", capsys.readouterr().err), name
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    with pytest.raises(SystemExit):
        main([str(table), "--output", str(mine)])
    assert "was not written by medcf" in capsys.readouterr().err
    assert mine.read_text() == "{}"
