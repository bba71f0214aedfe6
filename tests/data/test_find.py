# SPDX-License-Identifier: Apache-2.0
"""Lists of cases from folders and tables: mixed formats, failures listed, mistakes told at once."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medcf.data import find_cases, get_spacing, read, to_luminance
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.owned import NOTICE


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10), value, dtype=np.uint8)).save(path)
    return path


def bundled(name: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(str(get_testdata_file(name, download=False)), path)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four images of three formats, four files that cannot be used, and side-cars."""
    root = tmp_path / "studies"
    picture(root / "b" / "plane.png")
    picture(root / "a.jpg")
    nib.save(nib.Nifti1Image(np.zeros((8, 9), dtype=np.uint8), np.diag([-1, -1, 1, 1])), root / "c.nii.gz")
    bundled("examples_ybr_color.dcm", root / "IM000001")
    bundled("test-SR.dcm", root / "report")
    nib.save(nib.Nifti1Image(np.zeros((8, 9, 4), dtype=np.uint8), np.eye(4)), root / "volume.nii")
    (root / "notes.docm").write_bytes(b"something else entirely")
    (root / "empty.dcm").touch()
    for name in ("README", "labels.csv", "run.log", ".hidden.png", "DICOMDIR", "x.json"):
        (root / name).write_text("side-car")
    picture(root / ".cache" / "thumbnail.png")
    return root


def test_folder_of_mixed_formats(mixed: Path) -> None:
    cases, failures = find_cases(mixed)
    assert [case.id for case in cases] == ["IM000001", "a", "c", "b__plane"]
    assert {Path(f.file).name for f in failures} == {"report", "volume.nii", "notes.docm", "empty.dcm"}
    reasons = {Path(f.file).name: f.reason for f in failures}
    assert "structured report" in reasons["report"]
    assert "volume" in reasons["volume.nii"]
    assert reasons["empty.dcm"] == "is empty"
    assert all(f.remedy for f in failures)
    shapes = [to_luminance(read(case)).shape for case in cases]
    assert shapes == [(1, 320, 240), (1, 10, 8), (1, 8, 9), (1, 10, 8)]


def test_frames_of_loops(mixed: Path) -> None:
    cases, _ = find_cases(mixed)
    assert cases[0].frame == 15
    cases, failures = find_cases(mixed, frame="all")
    loop = [case for case in cases if case.id.startswith("IM000001")]
    assert [case.frame for case in loop] == list(range(30))
    assert [case.id for case in loop[:2]] == ["IM000001_f0000", "IM000001_f0001"]
    cases, failures = find_cases(mixed, frame=40)
    assert "IM000001" not in {case.id for case in cases}
    assert "has 30 frames" in next(f.reason for f in failures if f.file.endswith("IM000001"))
    with pytest.raises(ValueError, match="frame must be"):
        find_cases(mixed, frame="any")


def test_case_ids_are_unique_stable_and_fit_for_file_names(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "A.bmp", "x y/ü (1).png", "x_y/plain.png", "v1.2.png"):
        picture(tmp_path / name)
    ids = [case.id for case in find_cases(tmp_path)[0]]
    assert len({i.casefold() for i in ids}) == 6
    assert {"a_png", "a_jpg", "A_bmp", "v1.2", "x_y__plain"} <= set(ids)
    assert not any(set(i) & set('/\\ ()"*?:<>|') for i in ids)
    assert ids == [case.id for case in find_cases(tmp_path)[0]]


def test_case_ids_stay_inside_of_the_output_folder_and_are_no_names_of_its_own(tmp_path: Path) -> None:
    names = ["../../evil", "/root", "a\\b", "..", "manifest.json", "x" * 300]
    (tmp_path / "list.json").write_text(json.dumps([{"file": "1.png", "case": name} for name in names]))
    picture(tmp_path / "1.png")
    ids = [case.id for case in find_cases(datalist=tmp_path / "list.json")[0]]
    assert len(set(ids)) == len(names)
    for name in ids:
        (tmp_path / "out" / name).mkdir(parents=True)
        assert (tmp_path / "out" / name).resolve().parent == tmp_path / "out"
    assert "manifest.json" not in ids
    deep = tmp_path / "deep" / ("1." * 60) / ("2." * 60) / ("3." * 60)
    picture(deep / "a.png")
    picture(deep / "b.png")
    ids = [case.id for case in find_cases(tmp_path / "deep")[0]]
    assert len(set(ids)) == 2
    assert all(len(name) <= 200 for name in ids)


def test_results_of_a_run_are_no_images_to_explain(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "out" / "1" / "panel.png")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"notice": NOTICE, "created": "today"}, indent=2))
    picture(tmp_path / "other" / "2.png")
    (tmp_path / "other" / "manifest.json").write_text('{"notice": "of a hospital"}')
    assert [case.id for case in find_cases(tmp_path)[0]] == ["1", "other__2"]


def test_slices_of_a_volume_fail_but_a_lone_slice_is_an_image(tmp_path: Path) -> None:
    bundled("CT_small.dcm", tmp_path / "lone" / "ct")
    cases, failures = find_cases(tmp_path)
    assert (len(cases), failures) == (1, [])
    bundled("CT_small.dcm", tmp_path / "lone" / "ct2")
    cases, failures = find_cases(tmp_path)
    assert cases == []
    assert [f.reason for f in failures] == ["is one of 2 slices of a CT series, which is a volume"] * 2


def test_excluded_folder_is_left_out(mixed: Path) -> None:
    cases, _ = find_cases(mixed, exclude=[mixed / "b"])
    assert "b__plane" not in {case.id for case in cases}


def test_header_that_promises_too_much_fails_when_it_is_read(tmp_path: Path) -> None:
    bundled("MR_truncated.dcm", tmp_path / "cut.dcm")
    (case,), failures = find_cases(tmp_path)
    assert failures == []
    with pytest.raises(UnreadableImage, match=r"cut\.dcm: cannot be decoded: truncated"):
        read(case)


def test_csv_with_all_columns(tmp_path: Path) -> None:
    picture(tmp_path / "im" / "1.png")
    picture(tmp_path / "im" / "2.png")
    picture(tmp_path / "masks" / "1.png")
    table = tmp_path / "list.csv"
    table.write_text(
        "file,label,subject,mask,split,spacing_mm,site\n"
        "im/1.png,1,S01,masks/1.png,train,0.5 0.25,Rome\n"
        "im/2.png,,007,,val,0.3,\n",
        encoding="utf-8-sig",
    )
    cases, failures = find_cases(datalist=table)
    assert failures == []
    first, second = cases
    columns = first.columns
    assert [columns[name] for name in ("label", "subject", "split", "site")] == [1, "S01", "train", "Rome"]
    assert Path(columns["segmentation"]) == tmp_path / "masks" / "1.png"  # a mask of a picture says what is in it
    assert first.mask is None
    assert get_spacing(read(first)) == (0.25, 0.5)
    np.testing.assert_allclose(read(first).affine.numpy(), np.diag([-0.25, -0.5, 1, 1]))
    assert "label" not in second.columns
    assert "segmentation" not in second.columns
    assert second.columns["subject"] == "007"
    assert get_spacing(read(second)) == (0.3, 0.3)
    assert first.item() == {**columns, "image": first, "case": first.id}
    assert [case.columns["subject"] for case in find_cases(datalist=table, split="val")[0]] == ["007"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbffile,label\r\n1.png,1\r\n\r\n",
        b"file;label\n1.png;1\n",
        b"file\tlabel\n1.png\t1\n",
        b" file , label\n1.png, 1\n",
    ],
)
def test_csv_as_spreadsheets_save_it(tmp_path: Path, content: bytes) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "list.csv").write_bytes(content)
    cases, failures = find_cases(datalist=tmp_path / "list.csv")
    assert [(case.id, case.columns["label"]) for case in cases] == [("1", 1)]
    assert failures == []


def test_label_column_can_be_chosen(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    table = tmp_path / "list.csv"
    table.write_text("file,label,label_plane\n1.png,a word,0\n")
    (case,), _ = find_cases(datalist=table, label_column="label_plane")
    assert case.columns["label"] == 0


@pytest.mark.parametrize(
    "content",
    [
        [{"file": "1.png", "label": 1}],
        {"training": [{"image": "1.png", "label": 1}], "numTraining": 1},
        {"training": ["1.png"]},
    ],
)
def test_json_lists(tmp_path: Path, content: object) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "list.json").write_text(json.dumps(content))
    (case,), _ = find_cases(datalist=tmp_path / "list.json")
    assert read(case).shape == (1, 10, 8)
    assert case.columns.get("split") == ("training" if isinstance(content, dict) else None)


def test_paths_can_be_relative_to_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    (tmp_path / "list.csv").write_text("file\n1.png\n")
    (case,), _ = find_cases(tmp_path / "images", tmp_path / "list.csv")
    assert case.id == "1"


def test_table_lists_unreadable_files_as_failures(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("not a picture")
    (tmp_path / "list.csv").write_text("file\n1.png\n2.png\n")
    cases, failures = find_cases(datalist=tmp_path / "list.csv")
    assert (len(cases), len(failures)) == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n1.png,1\n", "no column 'file'.*path, label.*name the column"),
        ("file,spacing_mm\n1.png,-1\n", "positive numbers"),
        ("file\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_mistakes_in_a_table_are_told_at_once(tmp_path: Path, content: str, message: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_cases(datalist=tmp_path / "list.csv")


def test_missing_things_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither dataset_dir nor datalist"):
        find_cases()
    with pytest.raises(FileNotFoundError, match="does not exist: check the path"):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "table.csv").write_text("file\n")
    with pytest.raises(FileNotFoundError, match="give a table as datalist"):
        find_cases(tmp_path / "table.csv")
    with pytest.raises(ValueError, match="holds no image: give one of"):
        find_cases(tmp_path)  # but a table
    with pytest.raises(FileNotFoundError, match="give a CSV or JSON file"):
        find_cases(datalist=tmp_path / "nowhere.csv")
    (tmp_path / "list.csv").write_text("file\n1.png\n2.png\n3.png\n4.png\n")
    with pytest.raises(FileNotFoundError, match=r"lists no existing file, for example 1\.png"):
        find_cases(datalist=tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes("file,note\n1.png,Jörg\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"cannot be parsed.*in UTF-8"):
        find_cases(datalist=tmp_path / "list.csv")
    (tmp_path / "list.json").write_text("{broken")
    with pytest.raises(ValueError, match="cannot be parsed"):
        find_cases(datalist=tmp_path / "list.json")
    picture(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("file,split\n1.png,train\n")
    with pytest.raises(ValueError, match=r"no row of split 'val'; it has \['train'\]"):
        find_cases(datalist=tmp_path / "list.csv", split="val")


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
    cases, failures = find_cases(archive, spatial_dims=3)

    assert len(cases) == 4
    ids = [case.id for case in cases]
    assert len(set(ids)) == 4
    assert "b__one" in ids
    assert "c" in ids
    assert sum(name.startswith("a__both") for name in ids) == 2
    assert all(failure.stage == "read" and failure.remedy for failure in failures)
    reasons = " | ".join(f"{failure.file}: {failure.reason}" for failure in failures)
    assert len(failures) == 4, reasons
    for part in ("slices are missing", "a series of images", "picture", "of an unknown format"):
        assert part in reasons
    pickle.dumps([cases, failures])


def test_the_volumes_can_be_read_and_their_files_are_in_the_order_of_the_slices(archive, oblique):
    cases, _ = find_cases(archive, spatial_dims=3)
    values, affine = oblique

    offsets = []
    for case in cases:
        volume = read(case)
        np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-4)
        offsets.append(int((volume.numpy()[0] - values).mean()))
        if len(case.files) > 1:
            assert case.path == case.files[0]
            assert [path.stem[-3:] for path in case.files] == ["000", "001", "002", "003", "004"]
    assert sorted(offsets) == [0, 0, 1, 2]


def test_names_come_from_the_path_below_the_folder_and_hold_no_patient_data(heads, oblique, tmp_path):
    root = heads.save_series(tmp_path / "Doe_Jane", *oblique)

    cases, failures = find_cases(root, spatial_dims=3)

    assert failures == []
    assert [case.id for case in cases] == ["series"]


def test_slices_that_fail_alike_are_one_line(heads, oblique, tmp_path):
    heads.save_series(tmp_path / "us", *oblique, modality="US")
    heads.save_series(tmp_path / "us2", *oblique, modality="US", series="1.2.3.20")
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_text("no volume")

    failures = find_cases(tmp_path, spatial_dims=3)[1]

    assert sorted(Path(failure.file).parent.name for failure in failures) == sorted([tmp_path.name] * 2 + ["us", "us2"])
    assert [failure.reason for failure in failures if "modality US" in failure.reason] == [
        "is an image of modality US, not a slice of a volume (and so are 4 more files of its folder)"
    ] * 2


def test_folders_of_volumes_can_be_left_out(archive):
    cases, _ = find_cases(archive, exclude=[archive / "a", archive / "c"], spatial_dims=3)
    assert [case.id for case in cases] == ["b__one"]


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

    cases, failures = find_cases(None, table, spatial_dims=3)

    assert [(case.id, case.columns["label"], case.columns["subject"]) for case in cases] == [
        ("b__one", 1, "s1"),
        ("c", 0, "s2"),
    ]
    assert cases[0].mask == archive / "mask.nii"
    assert len(cases[1].files) == 5
    assert len(failures) == 2
    assert [case.id for case in find_cases(None, table, split="val", spatial_dims=3)[0]] == ["c"]
    with pytest.raises(ValueError, match="no row of split"):
        find_cases(None, table, split="test", spatial_dims=3)


def test_no_volume_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="neither"):
        find_cases(spatial_dims=3)
    with pytest.raises(ValueError, match="holds no volume"):
        find_cases(tmp_path, spatial_dims=3)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_cases(tmp_path / "nowhere", spatial_dims=3)
