# SPDX-License-Identifier: Apache-2.0
"""A folder as people have it: links, pipes, locked folders, label maps, names that are not text."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from medcf.data import find_cases, read
from medcf.data.walk import walk_files

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PICTURE).save(path)
    return path


def names(root):
    return [path.relative_to(root).as_posix() for path in walk_files(root)[0]]


def test_links_are_followed_and_loops_end(tmp_path, caplog):
    save(tmp_path / "elsewhere" / "linked.png")
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "patient").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "file.png").symlink_to(tmp_path / "elsewhere" / "linked.png")
    assert names(tmp_path / "in") == ["a.png", "file.png", "patient/linked.png"]
    assert "back is a link to a folder that was already searched" in caplog.text


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    save(tmp_path / "locked" / "b.png")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    cases, failures = find_cases(tmp_path)
    assert [case.id for case in cases] == ["a"]
    reasons = {os.path.basename(failure.file): failure.reason for failure in failures}
    assert reasons == {
        "gone.png": "is a link to a file that does not exist",
        "pipe.png": "is a pipe, a socket or a device, not a file",
        "locked": "is a folder that cannot be searched (PermissionError)",
    }


def test_label_maps_beside_images_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in (
        "a.png",
        "a_mask.png",
        "segmentations/a.png",
        "derivatives/x/sub-1_T1w.png",
        "labelsTr/a.png",
        "mask.png",
    ):
        save(tmp_path / name)
    assert names(tmp_path) == ["a.png", "mask.png"]
    assert "4 files look like label maps and are left out" in caplog.text


def test_a_folder_of_nothing_but_label_maps_is_taken_as_it_is(tmp_path):
    save(tmp_path / "a_mask.png")
    assert names(tmp_path) == ["a_mask.png"]


def test_hidden_files_and_the_pixels_of_a_metaimage_are_no_cases(tmp_path):
    for name in ("._a.png", ".hidden.png", "~$a.png"):
        save(tmp_path / name)
    (tmp_path / "v.mhd").write_text("ObjectType = Image\n")
    (tmp_path / "v.raw").write_bytes(b"0")
    assert names(tmp_path) == ["v.mhd"]


def test_one_file_is_a_dataset(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (case,), failures = find_cases(tmp_path / "b.png")
    assert (case.id, failures) == ("b", [])


def test_names_that_are_not_text_and_very_long_names_are_cases(tmp_path):
    folder = os.fsencode(tmp_path)
    save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", folder + b"/M\xfcller.png")
    shutil.copy(tmp_path / "a.png", tmp_path / ("x" * 251 + ".png"))
    cases, failures = find_cases(tmp_path)
    assert failures == []
    for case in cases:
        case.id.encode("utf-8")
        assert len(case.id) < 200
        np.testing.assert_allclose(read(case).numpy()[0].T, PICTURE / 255, atol=1e-6)


@pytest.mark.parametrize("label", ["SP", "sp", "1", "1.0", 1])
def test_labels_are_indices_or_names_of_classes(tmp_path, label):
    save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"file,label\na.png,{label}\n")
    (case,), _ = find_cases(datalist=tmp_path / "t.csv", class_names=["NSP", "SP"])
    assert case.columns["label"] == 1


def test_a_column_that_inference_does_not_need_may_hold_anything(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("file,label,segmentation\na.png,unsure,nowhere.png\ngone.png,,\n")
    cases, failures = find_cases(datalist=tmp_path / "t.csv")
    assert [case.id for case in cases] == ["a"]
    assert [failure.reason for failure in failures] == ["does not exist"]


def test_a_section_of_a_decathlon_file_is_chosen(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "t.json").write_text('{"name": "x", "training": [{"image": "a.png", "label": 0}], "test": ["b.png"]}')
    (case,), _ = find_cases(datalist=tmp_path / "t.json", split="test")
    assert case.id == "b"


def test_a_pipe_in_a_table_and_a_link_to_itself_cost_one_line(tmp_path):
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.png")
    cases, failures = find_cases(tmp_path / "in")
    assert ([case.id for case in cases], [os.path.basename(each.file) for each in failures]) == (["a"], ["loop"])
    (tmp_path / "t.csv").write_text("file,files,frame\nin/a.png,3,7\npipe.png,,\n,,\n")
    cases, failures = find_cases(datalist=tmp_path / "t.csv")
    assert ([case.id for case in cases], len(failures)) == (["in__a"], 1)
    assert cases[0].columns["files"] == "3"


def test_a_split_may_be_a_number(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("file,split\na.png,1\n")
    assert len(find_cases(datalist=tmp_path / "t.csv", split=1)[0]) == 1
