# SPDX-License-Identifier: Apache-2.0
"""Datalists of public data sets, from trees laid out as their owners pack them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from medcf.data import find_cases
from medcf.data.prepare import main, prepare
from medcf.data.public_sets import PUBLIC_SETS

COUNTRIES = {"Algeria": "DZA", "Egypt": "EGY", "Ghana": "GHA", "Malawi": "MWI", "Uganda": "UGA"}


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG")


def fetal_planes_db(root: Path) -> None:
    planes = PUBLIC_SETS["fetal_planes_db"].classes
    lines = ["Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "]
    for patient in range(1, 41):
        for n, plane in enumerate(planes):
            name = f"Patient{patient:05d}_Plane{n + 1}_1_of_1"
            brain = "Trans-thalamic" if plane == "Fetal brain" else "Not A Brain"
            lines.append(f"{name};{patient};{plane};{brain};Op. 1;Voluson E6;{patient % 2}")
            touch(root / "Images" / f"{name}.png")
    lines.append("Patient00041_Plane1_1_of_1;41;Fetal brain;Other;Op. 1;Aloka;1")  # listed, and not there
    (root / "FETAL_PLANES_DB_data.csv").write_text("\n".join(lines) + "\n")


def african_planes(root: Path) -> None:
    lines = ["Patient_num,Plane,Train,Center,Filename"]
    for country, code in COUNTRIES.items():
        for patient in range(1, 6):
            for n, plane in enumerate(("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")):
                name = f"patient{patient:03d}_{code}_plane{n}"
                lines.append(f"{patient},{plane},1,{country},{name}")
                touch(root / country / f"{name}.png")
    (root / "African_planes_database.csv").write_text("\n".join(lines) + "\n")


def covid19_radiography(root: Path) -> None:
    for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        for n in range(1, 13):
            touch(root / name / "images" / f"{name}-{n}.png")
            touch(root / name / "masks" / f"{name}-{n}.png")
    (root / "README.md.txt").write_text("about")


def chexpert_small(root: Path) -> None:
    findings = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"]
    findings += ["Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"]
    findings += ["Fracture", "Support Devices"]
    for part, first in (("train", 1), ("valid", 64541)):
        lines = [",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *findings])]
        for patient in range(first, first + 24):
            marks = dict.fromkeys(findings, "")
            if patient % 4 == 0:
                marks["No Finding"] = "1.0"
            elif patient % 4 == 1:
                marks |= {"Lung Opacity": "1.0", "Support Devices": "1.0", "Edema": "-1.0"}
            elif patient % 4 == 2:
                marks |= {"Lung Opacity": "1.0", "Pneumonia": "1.0"}  # two: of no class
            else:
                marks["Pneumonia"] = "-1.0"  # uncertain
            for view, kind in (("view1_frontal", "Frontal"), ("view2_lateral", "Lateral")):
                path = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1/{view}.jpg"
                lines.append(",".join([path, "Male", "61", kind, "AP" if kind == "Frontal" else "", *marks.values()]))
                touch(root / Path(*Path(path).parts[1:]))
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")


def adni(root: Path) -> None:
    columns = ["Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Modality", "Description", "Type"]
    lines = [",".join(f'"{name}"' for name in [*columns, "Acq Date", "Format", "Downloaded"])]
    for n in range(48):
        subject, number = f"{n % 9:03d}_S_{1000 + n}", f"I{45000 + n}"
        group = ("CN", "AD", "MCI")[n % 3]
        lines.append(f'"{number}","{subject}","{group}","M","76","sc","MRI","MPRAGE","Original","9/01/2005","NiFTI",""')
        folder = root / subject / "MPRAGE" / "2005-09-01_10_00_00.0" / number
        touch(folder / (f"ADNI_{subject}_{number}.nii" if n % 2 else f"ADNI_{subject}_br_raw_{n}.dcm"))
    touch(root / "011_S_9999" / "MPRAGE" / "2005-09-01" / "I99999" / "unlisted.nii")
    (root / "ADNI1_1_02_2024.csv").write_text("\n".join(lines) + "\n")


TREES = {tree.__name__: tree for tree in (fetal_planes_db, african_planes, covid19_radiography, chexpert_small, adni)}
COUNTS = {"fetal_planes_db": 240, "african_planes": 100, "covid19_radiography": 48, "chexpert_small": 24, "adni": 32}


@pytest.mark.parametrize("name", TREES)
def test_every_image_is_listed_once_with_class_and_subject_and_no_subject_is_in_two_splits(name, tmp_path):
    TREES[name](tmp_path)
    rows = prepare(name, tmp_path)
    assert len(rows) == COUNTS[name] == len({row["file"] for row in rows})
    assert all((tmp_path / row["file"]).exists() for row in rows)
    assert all(PUBLIC_SETS[name].classes[row["label"]] == row["class_name"] for row in rows)
    splits = {}
    for row in rows:
        splits.setdefault(row["subject"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert prepare(name, tmp_path) == rows
    assert [row["split"] for row in prepare(name, tmp_path, seed=1)] != [row["split"] for row in rows]


def test_patients_of_two_countries_with_one_number_are_two(tmp_path):
    african_planes(tmp_path)
    rows = prepare("african_planes", tmp_path)
    assert len({row["subject"] for row in rows}) == 25
    assert rows[0]["country"] == "Algeria"


def test_masks_findings_and_series_are_what_they_should_be(tmp_path):
    for name, tree in TREES.items():
        tree(tmp_path / name)
    masks = prepare("covid19_radiography", tmp_path / "covid19_radiography")
    assert all(row["mask"] == row["file"].replace("images", "masks") for row in masks)
    findings = prepare("chexpert_small", tmp_path / "chexpert_small")
    assert {row["class_name"] for row in findings} == {"No Finding", "Lung Opacity"}
    assert not any("lateral" in row["file"] for row in findings)
    scans = prepare("adni", tmp_path / "adni")
    assert {row["class_name"] for row in scans} == {"CN", "AD"}
    assert {Path(row["file"]).suffix for row in scans} == {".nii", ""}  # NIfTI, and folders of DICOM series
    planes = prepare("fetal_planes_db", tmp_path / "fetal_planes_db", val=0, test=5)
    assert 0.4 < sum(row["split"] == "test" for row in planes) / len(planes) < 0.6
    assert "val" not in {row["split"] for row in planes}


def test_the_command_writes_a_table_that_medcf_reads_and_says_what_it_holds(tmp_path, capsys):
    fetal_planes_db(tmp_path)
    main(["fetal_planes_db", str(tmp_path)])
    told = capsys.readouterr().out
    assert "train: 168 images of 28: Fetal abdomen 28, Fetal brain 28" in told
    assert f"--datalist {tmp_path / 'datalist.csv'}" in told
    with (tmp_path / "datalist.csv").open() as stream:
        assert next(csv.DictReader(stream))["scanner"] == "Voluson E6"
    cases, failures = find_cases(tmp_path, tmp_path / "datalist.csv", split="test")
    assert len(cases) + len(failures) == 48


def test_a_folder_without_the_set_is_refused_with_what_it_needs(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"covid19_radiography .*: COVID, Lung_Opacity, Normal"):
        prepare("covid19_radiography", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"FETAL_PLANES_DB_data\.csv"):
        prepare("fetal_planes_db", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["adni", str(tmp_path)])
    assert ended.value.code == 1
    assert "no CSV with the column 'Image Data ID'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'mnist' is none of the data sets fetal_planes_db"):
        prepare("mnist", tmp_path)
    with pytest.raises(ValueError, match="leave nothing to train on"):
        prepare("adni", tmp_path, val=5, test=5)
    for n in range(3):
        touch(tmp_path / "few" / "COVID" / "images" / f"{n}.png")
    with pytest.raises(ValueError, match="fewer than 10 subjects"):
        prepare("covid19_radiography", tmp_path / "few")
