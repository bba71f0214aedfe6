# SPDX-License-Identifier: Apache-2.0
"""The axioms on folders of images: what is read, what is reported, and that no truth is needed."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pytest
from PIL import Image

from benchmarks.axioms import main, method_rows, read_folder
from benchmarks.counterfactual.environment import describe_command
from benchmarks.counterfactual.task import Recipe
from medcf.phantoms import write_brain_demo, write_demo

DIFFICE = Recipe("diffice", ("inference.json",))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    write_demo(folder, "demo", 3, 0, formats=("png",))
    (folder / "z_damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    return folder


def test_pictures_are_read_as_the_job_reads_them_and_a_damaged_one_costs_one_line(pictures, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        folder = read_folder(DIFFICE, pictures, 4, tmp_path / "work")
    assert folder.asked.own.tolist() == [0, 0, 0]
    assert folder.asked.cases.image.shape == (3, 1, 64, 80)
    assert not folder.novel.any()
    assert [line for line in caplog.messages if "z_damaged.png" in line] == caplog.messages[-1:]
    assert "3 images; 1 could not be read" in folder.describe()
    assert len(set(folder.asked.cases.case)) == 3


def test_the_content_and_not_the_name_seeds_the_noise(pictures, tmp_path):
    before = read_folder(DIFFICE, pictures, 4, tmp_path / "work").asked.cases
    for number, path in enumerate(sorted(pictures.glob("*.png"))):
        path.rename(pictures / f"{9 - number}.png")
    after = read_folder(DIFFICE, pictures, 4, tmp_path / "work").asked.cases
    assert before.subject != after.subject
    assert sorted(before.case) == sorted(after.case)


def test_images_that_are_no_heads_are_counted_as_strange(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 128, 160), np.uint8)
    for number, each in enumerate(noise):
        Image.fromarray(each).save(tmp_path / f"{number}.png")
    folder = read_folder(DIFFICE, tmp_path, 2, tmp_path / "work")
    assert folder.novel.all()
    assert "novelty: 2 of 2" in folder.describe()


def test_volumes_are_read_by_their_affine_and_f_gives_their_classes(tmp_path):
    records = write_brain_demo(tmp_path / "brains", "demo", 2)
    folder = read_folder(Recipe("controlcg", ("inference.json",)), tmp_path / "brains", 2, tmp_path / "work")
    assert folder.asked.cases.image.shape == (2, 1, 40, 48, 40)
    assert folder.asked.own.tolist() == [int(record["label"]) for record in records]
    assert not folder.novel.any()
    assert folder.asked.recover is None


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can be read"):
        read_folder(DIFFICE, tmp_path, 1, tmp_path / "work")


def test_a_method_that_the_bundle_lacks_is_named_with_those_that_it_has():
    config = DIFFICE.open()
    assert [row.name for row in method_rows(config, None)] == ["diffice", "unchanged"]
    with pytest.raises(ValueError, match=r"dimes.*fastdime"):
        method_rows(config, ["dimes"])


@pytest.mark.long
def test_the_command_writes_a_row_per_method_and_what_it_found_of_the_images(pictures, tmp_path):
    out = tmp_path / "out"
    options = ["--dataset_dir", str(pictures), "--count", "4", "--name", "mine", "--rows", "unchanged"]
    main([*options, "--out", str(out), "--work", str(tmp_path / "work")])
    (row,) = csv.DictReader((out / "axioms_mine.csv").open(encoding="utf-8"))
    assert row["row"] == "unchanged"
    assert float(row["composition_10"]) == float(row["flips"]) == float(row["other_factors"]) == 0
    assert row["minimality_n"] == "3"
    page = (out / "axioms_mine.md").read_text(encoding="utf-8")
    assert "Out of distribution by the bundle's novelty: 0 of 3" in page
    assert str(tmp_path) not in page


def test_a_folder_of_the_data_is_shown_by_its_place_in_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path))
    shown = describe_command("benchmarks.axioms", ["--dataset_dir", str(tmp_path / "set" / "images")])
    assert shown == 'python -m benchmarks.axioms --dataset_dir "$DATA/set/images"'
