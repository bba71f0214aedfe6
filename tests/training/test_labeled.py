# SPDX-License-Identifier: Apache-2.0
"""Classes by folder, and tables whose labels are words."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medcf.training.labeled import labeled_cases


def picture(path, value=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 20), value, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Ten images of each of two classes, whose names do not come in the order in which they are made."""
    for name in ("pneumonia", "normal"):
        for number in range(10):
            picture(tmp_path / name / f"{number}.png")
    return tmp_path


def found(root, table=None, **options):
    cases = labeled_cases(root, table, **options)
    return cases.class_names, {case.id: case.columns for case in cases.cases}


def test_folders_are_classes_in_the_order_of_their_names(folders):
    names, cases = found(folders)
    assert names == ("normal", "pneumonia")
    assert {cases[f"normal__{number}"]["label"] for number in range(10)} == {0}
    assert {cases[f"pneumonia__{number}"]["label"] for number in range(10)} == {1}


def test_a_fifth_of_each_class_is_for_validation_and_always_the_same(folders):
    _, first = found(folders)
    for label in (0, 1):
        splits = [columns["split"] for columns in first.values() if columns["label"] == label]
        assert sorted(splits) == ["train"] * 8 + ["val"] * 2
    picture(folders / "normal" / "new.png")
    _, second = found(folders)
    moved = [name for name in first if first[name]["split"] != second[name]["split"]]
    assert len(moved) <= 1


def test_a_class_of_two_images_has_one_for_validation(tmp_path):
    for name in "ab":
        picture(tmp_path / name / "0.png")
        picture(tmp_path / name / "1.png")
    _, cases = found(tmp_path)
    assert sorted((columns["label"], columns["split"]) for columns in cases.values()) == [
        (0, "train"),
        (0, "val"),
        (1, "train"),
        (1, "val"),
    ]


def test_folders_below_a_class_are_subjects_and_stay_together(tmp_path):
    for number in range(30):
        picture(tmp_path / "ab"[number % 2] / f"patient{number // 5}" / f"{number}.png")
    _, cases = found(tmp_path)
    sides = {subject: set() for subject in (f"patient{number}" for number in range(6))}
    for columns in cases.values():
        sides[columns["subject"]].add(columns["split"])
    assert all(len(splits) == 1 for splits in sides.values()), "a patient of both classes is on both sides"
    assert {split for splits in sides.values() for split in splits} == {"train", "val"}


def test_a_folder_that_holds_a_whole_class_is_no_subject(tmp_path):
    for number in range(10):
        picture(tmp_path / "ab"[number % 2] / "images" / f"{number}.png")
    _, cases = found(tmp_path)
    assert len({columns["subject"] for columns in cases.values()}) == 10


def test_volumes_in_folders_are_cases(tmp_path):
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.int16), np.eye(4)), path)
    names, cases = found(tmp_path, spatial_dims=3)
    assert names == ("a", "b")
    assert [cases[name]["label"] for name in ("a__0", "a__2", "a__4", "b__1", "b__3", "b__5")] == [0, 0, 0, 1, 1, 1]


def test_what_cannot_be_used_in_a_folder_is_left_out_and_named(folders, caplog):
    (folders / "normal" / "broken.png").write_bytes(b"\x89PNG")
    picture(folders / "stray.png")
    _, cases = found(folders)
    assert len(cases) == 20
    assert "broken.png" in caplog.text
    assert "stray.png" in caplog.text


def test_more_or_fewer_classes_than_the_networks_know_are_named(folders):
    picture(folders / "covid" / "0.png")
    with pytest.raises(ValueError, match=r"holds 3 classes \(covid, normal, pneumonia\), but the networks have 2"):
        labeled_cases(folders, None)
    picture(folders / "one" / "images" / "0.png")
    with pytest.raises(ValueError, match=r"holds 1 class \(images\)"):
        labeled_cases(folders / "one", None)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "json", "json with splits"])
def test_labels_of_a_table_may_be_words(folders, kind):
    rows = [
        {"file": "normal/0.png", "label": "healthy", "subject": "p1", "split": "train"},
        {"file": "pneumonia/0.png", "label": "AD", "subject": "p2", "split": "val"},
        {"file": "pneumonia/1.png", "label": "", "subject": "p3", "split": "val"},
    ]
    if kind.startswith("json"):
        table = folders / "table.json"
        splits = {split: [row for row in rows if row["split"] == split] for split in ("train", "val")}
        table.write_text(json.dumps(rows if kind == "json" else splits))
    else:
        table, mark = folders / "table.csv", ";" if kind == "semicolons" else ","
        table.write_text("\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]))
    names, cases = found(None, table)
    assert names == ("AD", "healthy")
    assert [columns.get("label") for columns in cases.values()] == [1, 0, None]
    assert [columns["split"] for columns in cases.values()] == ["train", "val", "val"]
    assert [columns["subject"] for columns in cases.values()] == ["p1", "p2", "p3"]


def test_class_indices_of_a_table_stay_what_they_are(folders):
    table = folders / "table.csv"
    table.write_text("file,label\nnormal/0.png,1\npneumonia/0.png,0\n")
    names, cases = found(None, table)
    assert names == ("class 0", "class 1")
    assert [columns["label"] for columns in cases.values()] == [1, 0]
    table.write_text("file\nnormal/0.png\n")
    assert found(None, table)[0] is None


def test_a_table_that_names_what_is_not_there_is_named_itself(folders):
    table = folders / "table.csv"
    table.write_text("file,label\nnormal/0.png,good\nnormal/77.png,bad\n")
    with pytest.raises(ValueError, match=r"1 files in .*table\.csv cannot be used: .*77\.png does not exist"):
        labeled_cases(None, table)
