# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medcf.data import build_datalist
from medcf.data.volumes import find_volumes, read_volume


@pytest.fixture
def archive(heads, oblique, tmp_path):
    """A folder of everything: two series in one folder, one over two folders, NIfTI, and what is no volume."""
    values, affine = oblique
    heads.save_nifti(tmp_path / "b" / "one.nii.gz", values, affine)
    heads.save_series(tmp_path / "a" / "both", values, affine, series="1.2.3.10")
    for path in heads.save_series(tmp_path / "tmp", values + 1, affine, series="1.2.3.11").iterdir():
        path.rename(tmp_path / "a" / "both" / f"x{path.name}")
    (tmp_path / "tmp").rmdir()
    split = heads.save_series(tmp_path / "c" / "left", values + 2, affine, series="1.2.3.12")
    (tmp_path / "c" / "right").mkdir()
    for path in sorted(split.iterdir())[:2]:
        path.rename(tmp_path / "c" / "right" / path.name)
    heads.save_series(tmp_path / "d", values, affine, series="1.2.3.13", change=lambda k, ds: None if k == 1 else ds)
    heads.save_nifti(tmp_path / "e" / "series.nii", np.zeros((4, 5, 6, 2), np.int16), affine)
    (tmp_path / "e" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 400)
    (tmp_path / "e" / "notes.txt").write_text("x")
    (tmp_path / "e" / "junk").write_bytes(b"no image" * 100)
    return tmp_path


def test_every_volume_of_a_folder_is_a_case_and_the_rest_are_failures(archive):
    cases, failures = find_volumes(archive)

    assert len(cases) == 4
    ids = [case["case"] for case in cases]
    assert len(set(ids)) == 4
    assert "b__one" in ids
    assert "c" in ids
    assert sum(name.startswith("a__both") for name in ids) == 2
    assert {tuple(sorted(failure)) for failure in failures} == {("file", "reason", "remedy")}
    reasons = " | ".join(f"{failure['file']}: {failure['reason']}" for failure in failures)
    assert len(failures) == 4, reasons
    for part in ("slices are missing", "series of volumes", "picture", "no NIfTI or DICOM"):
        assert part in reasons
    json.dumps([cases, failures])


def test_the_cases_can_be_read_and_their_files_are_in_the_order_of_the_slices(archive, oblique):
    cases, _ = find_volumes(archive)
    values, affine = oblique

    offsets = []
    for case in cases:
        volume = read_volume(case.get("files") or case["image"])
        np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-4)
        offsets.append(int((volume.numpy()[0] - values).mean()))
        if "files" in case:
            assert case["image"] == case["files"][0]
            assert [name[-7:-4] for name in case["files"]] == ["000", "001", "002", "003", "004"]
    assert sorted(offsets) == [0, 0, 1, 2]


def test_names_come_from_the_path_below_the_folder_and_hold_no_patient_data(heads, oblique, tmp_path):
    root = heads.save_series(tmp_path / "Doe_Jane", *oblique)

    cases, failures = find_volumes(root)

    assert failures == []
    assert [case["case"] for case in cases] == ["series"]


def test_slices_that_fail_alike_are_one_line(heads, oblique, tmp_path):
    heads.save_series(tmp_path / "us", *oblique, modality="US")
    heads.save_series(tmp_path / "us2", *oblique, modality="US", series="1.2.3.20")
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_text("no volume")

    failures = find_volumes(tmp_path)[1]

    assert sorted(Path(failure["file"]).parent.name for failure in failures) == sorted(
        [tmp_path.name] * 2 + ["us", "us2"]
    )
    assert [failure["reason"] for failure in failures if "modality US" in failure["reason"]] == [
        "is an image of modality US, no slice of a volume (and so are 4 more files of its folder)"
    ] * 2


def test_failures_look_as_those_of_images(archive):
    failures = build_datalist(archive)[1]
    assert {tuple(failure) for failure in failures} == {tuple(failure) for failure in find_volumes(archive)[1]}


def test_an_output_folder_can_be_left_out(archive):
    cases, _ = find_volumes(archive, exclude=[archive / "a", archive / "c"])
    assert [case["case"] for case in cases] == ["b__one"]


def test_a_table_names_files_and_folders_of_series(archive, heads, oblique):
    values, affine = oblique
    heads.save_nifti(archive / "mask.nii", (values > 0).astype(np.uint8), affine)
    table = archive / "list.csv"
    table.write_text(
        "file,label,subject,split,mask,spacing_mm\n"
        "b/one.nii.gz,1,s1,train,mask.nii,1 2 3\n"
        "c,0,s2,val,,\n"
        "d,0,s3,train,,\n"
        "e/picture.png,0,s4,train,,\n"
    )

    cases, failures = find_volumes(None, table)

    assert [(case["case"], case["label"], case["subject"]) for case in cases] == [("b__one", 1, "s1"), ("c", 0, "s2")]
    assert cases[0]["mask"] == str(archive / "mask.nii")
    assert len(cases[1]["files"]) == 5
    assert len(failures) == 2
    assert [case["case"] for case in find_volumes(None, table, split="val")[0]] == ["c"]
    with pytest.raises(ValueError, match="no row of split"):
        find_volumes(None, table, split="test")


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="neither"):
        find_volumes()
    with pytest.raises(ValueError, match="holds no volume"):
        find_volumes(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_volumes(tmp_path / "nowhere")
