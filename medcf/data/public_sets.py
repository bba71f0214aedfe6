# SPDX-License-Identifier: Apache-2.0
"""Public data sets as their owners distribute them: which image is whose, and of which class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcf.data.case import read_records

__all__ = ["PUBLIC_SETS", "PublicSet"]

Row = dict[str, Any]

PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
#: ADNI names a folder after each image: I and a number.
_IMAGE_ID = re.compile(r"I\d+")


@dataclass(frozen=True)
class PublicSet:
    """A data set's layout.

    Attributes:
        classes: names of the classes 0, 1, ...
        rows: lists the images below a folder: ``file`` relative to it, ``label`` as a class name, ``subject``, and more
            columns. It may list files that are not there.
        layout: what must lie in the folder, for an error message.
        source: where the set comes from.
    """

    classes: tuple[str, ...]
    rows: Callable[[Path], Iterator[Row]]
    layout: str
    source: str


def _fetal_planes_db(root: Path) -> Iterator[Row]:
    for row in read_records(root / "FETAL_PLANES_DB_data.csv"):
        yield {
            "file": f"Images/{row['Image_name']}.png",
            "label": row["Plane"],
            "subject": row["Patient_num"],
            "brain_plane": row["Brain_plane"],
            "scanner": row["US_Machine"],
            "operator": row["Operator"],
        }


def _african_planes(root: Path) -> Iterator[Row]:
    for row in read_records(root / "African_planes_database.csv"):
        name = Path(row["Filename"]).stem
        # patients are numbered from 1 in every country
        subject = f"{row['Center']} {row['Patient_num']}"
        yield {
            "file": f"{row['Center']}/{name}.png",
            "label": row["Plane"],
            "subject": subject,
            "country": row["Center"],
        }


def _covid19_radiography(root: Path) -> Iterator[Row]:
    for name in RADIOGRAPHS:
        images = sorted((root / name / "images").glob("*.png"))
        for image in images:
            mask = root / name / "masks" / image.name
            row = {"file": image.relative_to(root).as_posix(), "label": name, "subject": image.stem}
            yield row | ({"mask": mask.relative_to(root).as_posix()} if mask.is_file() else {})


def _chexpert_small(root: Path) -> Iterator[Row]:
    for table in ("train.csv", "valid.csv"):
        for row in read_records(root / table):
            if row["Frontal/Lateral"] != "Frontal":
                continue
            found = [name for name in FINDINGS[1:] if row.get(name) in ("1", "1.0")]
            if row.get(FINDINGS[0]) not in ("1", "1.0") and len(found) != 1:
                continue  # uncertain, of several findings, or of none that is a class
            path = Path(row["Path"])
            yield {
                "file": Path(*path.parts[1:]).as_posix(),  # the first part is the set's own folder
                "label": found[0] if found else FINDINGS[0],
                "subject": path.parts[2],
                "projection": row.get("AP/PA", ""),
            }


def _adni(root: Path) -> Iterator[Row]:
    tables = [table for table in sorted(root.glob("*.csv")) if "Image Data ID" in read_records(table)[0]]
    if not tables:
        raise FileNotFoundError(f"{root} has no CSV with the column 'Image Data ID', as LONI's collections have.")
    about = {_image_id(row["Image Data ID"]): row for table in tables for row in read_records(table)}
    for folder in sorted(path for path in root.rglob("I*") if path.is_dir() and _IMAGE_ID.fullmatch(path.name)):
        row = about.get(folder.name)
        files = sorted(folder.glob("*.nii*"))
        if row is not None and row["Group"] in GROUPS:
            place = files[0] if files else folder  # NIfTI, or the folder of a DICOM series
            yield {
                "file": place.relative_to(root).as_posix(),
                "label": row["Group"],
                "subject": row["Subject"],
                "visit": row.get("Visit", ""),
                "age": row.get("Age", ""),
                "sex": row.get("Sex", ""),
            }


def _image_id(text: str) -> str:
    return text if text.startswith("I") else f"I{text}"


RADIOGRAPHS = ("Normal", "Lung_Opacity", "COVID", "Viral Pneumonia")
FINDINGS = ("No Finding", "Lung Opacity", "Pleural Effusion", "Cardiomegaly", "Pneumonia")
GROUPS = ("CN", "AD")

PUBLIC_SETS: dict[str, PublicSet] = {
    "fetal_planes_db": PublicSet(
        PLANES,
        _fetal_planes_db,
        "FETAL_PLANES_DB_data.csv and Images/",
        "doi.org/10.5281/zenodo.3904280",
    ),
    "african_planes": PublicSet(
        PLANES,
        _african_planes,
        "African_planes_database.csv and a folder for each country",
        "doi.org/10.5281/zenodo.7540448",
    ),
    "covid19_radiography": PublicSet(
        RADIOGRAPHS,
        _covid19_radiography,
        "COVID, Lung_Opacity, Normal and 'Viral Pneumonia', each with images/ and masks/",
        "kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    ),
    "chexpert_small": PublicSet(
        FINDINGS,
        _chexpert_small,
        "train.csv, valid.csv, train/ and valid/",
        "CheXpert-v1.0-small of stanfordmlgroup.github.io/competitions/chexpert",
    ),
    "adni": PublicSet(
        GROUPS,
        _adni,
        "the collection's CSV and the images as LONI packs them: SUBJECT/DESCRIPTION/DATE/IMAGE ID/",
        "adni.loni.usc.edu",
    ),
}
