# SPDX-License-Identifier: Apache-2.0
"""Lists of cases from folders and tables: mixed formats, failures listed, mistakes told at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from medcf.data import UnreadableImage, build_datalist, get_spacing, read_case
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
    cases, failures = build_datalist(mixed)
    assert [case["case"] for case in cases] == ["IM000001", "a", "c", "b__plane"]
    assert {Path(f["file"]).name for f in failures} == {"report", "volume.nii", "notes.docm", "empty.dcm"}
    reasons = {Path(f["file"]).name: f["reason"] for f in failures}
    assert "structured report" in reasons["report"]
    assert "volume" in reasons["volume.nii"]
    assert reasons["empty.dcm"] == "is empty"
    assert all(f["remedy"] for f in failures)
    shapes = [read_case(case).shape for case in cases]
    assert shapes == [(1, 240, 320), (1, 8, 10), (1, 9, 8), (1, 8, 10)]


def test_frames_of_loops(mixed: Path) -> None:
    cases, _ = build_datalist(mixed)
    assert cases[0]["frame"] == 15
    cases, failures = build_datalist(mixed, frame="all")
    loop = [case for case in cases if case["case"].startswith("IM000001")]
    assert [case["frame"] for case in loop] == list(range(30))
    assert [case["case"] for case in loop[:2]] == ["IM000001_f0000", "IM000001_f0001"]
    cases, failures = build_datalist(mixed, frame=40)
    assert "IM000001" not in {case["case"] for case in cases}
    assert "has 30 frames" in next(f["reason"] for f in failures if f["file"].endswith("IM000001"))
    with pytest.raises(ValueError, match="frame must be"):
        build_datalist(mixed, frame="any")


def test_case_ids_are_unique_stable_and_fit_for_file_names(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "A.bmp", "x y/ü (1).png", "x_y/plain.png", "v1.2.png"):
        picture(tmp_path / name)
    ids = [case["case"] for case in build_datalist(tmp_path)[0]]
    assert len({i.casefold() for i in ids}) == 6
    assert {"a_png", "a_jpg", "A_bmp", "v1.2", "x_y__plain"} <= set(ids)
    assert not any(set(i) & set('/\\ ()"*?:<>|') for i in ids)
    assert ids == [case["case"] for case in build_datalist(tmp_path)[0]]


def test_case_ids_stay_inside_of_the_output_folder_and_are_no_names_of_its_own(tmp_path: Path) -> None:
    names = ["../../evil", "/root", "a\\b", "..", "manifest.json", "x" * 300]
    (tmp_path / "list.json").write_text(json.dumps([{"file": "1.png", "case": name} for name in names]))
    picture(tmp_path / "1.png")
    ids = [case["case"] for case in build_datalist(datalist=tmp_path / "list.json")[0]]
    assert len(set(ids)) == len(names)
    for name in ids:
        (tmp_path / "out" / name).mkdir(parents=True)
        assert (tmp_path / "out" / name).resolve().parent == tmp_path / "out"
    assert "manifest.json" not in ids
    deep = tmp_path / "deep" / ("1." * 60) / ("2." * 60) / ("3." * 60)
    picture(deep / "a.png")
    picture(deep / "b.png")
    ids = [case["case"] for case in build_datalist(tmp_path / "deep")[0]]
    assert len(set(ids)) == 2
    assert all(len(name) <= 200 for name in ids)


def test_results_of_a_run_are_no_images_to_explain(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "out" / "1" / "panel.png")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"notice": NOTICE, "created": "today"}, indent=2))
    picture(tmp_path / "other" / "2.png")
    (tmp_path / "other" / "manifest.json").write_text('{"notice": "of a hospital"}')
    assert [case["case"] for case in build_datalist(tmp_path)[0]] == ["1", "other__2"]


def test_slices_of_a_volume_fail_but_a_lone_slice_is_an_image(tmp_path: Path) -> None:
    bundled("CT_small.dcm", tmp_path / "lone" / "ct")
    cases, failures = build_datalist(tmp_path)
    assert (len(cases), failures) == (1, [])
    bundled("CT_small.dcm", tmp_path / "lone" / "ct2")
    cases, failures = build_datalist(tmp_path)
    assert cases == []
    assert [f["reason"] for f in failures] == ["has the wrong dimension: one of 2 slices of a CT series, a volume"] * 2


def test_excluded_folder_is_left_out(mixed: Path) -> None:
    cases, _ = build_datalist(mixed, exclude=[mixed / "b"])
    assert "b__plane" not in {case["case"] for case in cases}


def test_header_that_promises_too_much_fails_when_it_is_read(tmp_path: Path) -> None:
    bundled("MR_truncated.dcm", tmp_path / "cut.dcm")
    (case,), failures = build_datalist(tmp_path)
    assert failures == []
    with pytest.raises(UnreadableImage, match=r"cut\.dcm: cannot be decoded: truncated"):
        read_case(case)


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
    cases, failures = build_datalist(datalist=table)
    assert failures == []
    first, second = cases
    assert (first["label"], first["subject"], first["split"], first["site"]) == (1, "S01", "train", "Rome")
    assert Path(first["mask"]) == tmp_path / "masks" / "1.png"
    assert get_spacing(read_case(first)) == (0.5, 0.25)
    np.testing.assert_allclose(read_case(first).affine.numpy()[:2, :2], [[0, -0.25], [-0.5, 0]])
    assert "label" not in second
    assert "mask" not in second
    assert second["subject"] == "007"
    assert get_spacing(read_case(second)) == (0.3, 0.3)
    assert [case["subject"] for case in build_datalist(datalist=table, split="val")[0]] == ["007"]


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
    cases, failures = build_datalist(datalist=tmp_path / "list.csv")
    assert [(case["case"], case["label"]) for case in cases] == [("1", 1)]
    assert failures == []


def test_label_column_can_be_chosen(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    table = tmp_path / "list.csv"
    table.write_text("file,label,label_plane\n1.png,a word,0\n")
    (case,), _ = build_datalist(datalist=table, label_column="label_plane")
    assert case["label"] == 0


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
    (case,), _ = build_datalist(datalist=tmp_path / "list.json")
    assert read_case(case).shape == (1, 8, 10)
    assert case.get("split") == ("training" if isinstance(content, dict) else None)


def test_paths_can_be_relative_to_a_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    (tmp_path / "list.csv").write_text("file\n1.png\n")
    (case,), _ = build_datalist(tmp_path / "images", tmp_path / "list.csv")
    assert case["case"] == "1"


def test_table_lists_unreadable_files_as_failures(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("not a picture")
    (tmp_path / "list.csv").write_text("file\n1.png\n2.png\n")
    cases, failures = build_datalist(datalist=tmp_path / "list.csv")
    assert (len(cases), len(failures)) == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n1.png,1\n", "no column 'file'.*path, label.*name the column"),
        ("file,label\n1.png,one\n", "'label' in row 1.*class index.*'one'"),
        ("file,label\n1.png,0.5\n", "class index"),
        ("file,spacing_mm\n1.png,-1\n", "positive numbers"),
        ("file\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_mistakes_in_a_table_are_told_at_once(tmp_path: Path, content: str, message: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        build_datalist(datalist=tmp_path / "list.csv")


def test_missing_things_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither dataset_dir nor datalist"):
        build_datalist()
    with pytest.raises(FileNotFoundError, match="does not exist or is not a folder"):
        build_datalist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file: give the folder it is in"):
        build_datalist(__file__)
    with pytest.raises(ValueError, match="holds no image: give one of"):
        build_datalist(tmp_path)
    with pytest.raises(FileNotFoundError, match="give a CSV or JSON file"):
        build_datalist(datalist=tmp_path / "nowhere.csv")
    (tmp_path / "list.csv").write_text("file\n1.png\n2.png\n3.png\n4.png\n")
    with pytest.raises(FileNotFoundError, match=r"1\.png, 2\.png, 3\.png and 1 more"):
        build_datalist(datalist=tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes("file,note\n1.png,Jörg\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"cannot be parsed.*in UTF-8"):
        build_datalist(datalist=tmp_path / "list.csv")
    (tmp_path / "list.json").write_text("{broken")
    with pytest.raises(ValueError, match="cannot be parsed"):
        build_datalist(datalist=tmp_path / "list.json")
    picture(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("file,split\n1.png,train\n")
    with pytest.raises(ValueError, match=r"no row of split 'val'; it has \['train'\]"):
        build_datalist(datalist=tmp_path / "list.csv", split="val")
