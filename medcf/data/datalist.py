# SPDX-License-Identifier: Apache-2.0
"""Lists of cases, from a folder or from a table.

A case is a dictionary: ``image`` (path), ``case`` (an id that is unique and stable), ``frame``, and what a table adds:
``label`` (int), ``subject``, ``mask`` (path), ``split``, ``spacing_mm`` and any other column.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medcf.data.errors import UnreadableImage
from medcf.data.pixels import planar_affine
from medcf.data.readers import Study, choose_frame, inspect_study, read_study

__all__ = ["build_datalist", "read_case"]

logger = logging.getLogger(__name__)

_SIDECARS = {
    *(".csv", ".tsv", ".json", ".txt", ".md", ".rst", ".yaml", ".yml", ".xml", ".html", ".log", ".pdf", ".py", ".bval"),
    *(".sha256", ".md5", ".pt", ".npz", ".npy", ".ini", ".cfg", ".conf", ".xlsx", ".docx"),
}
_SIDECAR_NAMES = {"dicomdir", "readme", "license", "licence", "thumbs.db", "desktop.ini"}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".gz", ".dcm", ".dicom", ".ima", ".img"}
_SLICED = ("CT", "MR", "PT", "NM")

Case = dict[str, Any]
Failure = dict[str, str]


def build_datalist(
    dataset_dir: str | PathLike[str] | None = None,
    datalist: str | PathLike[str] | None = None,
    *,
    frame: int | str = "middle",
    split: str | None = None,
    label_column: str = "label",
    exclude: Sequence[str | PathLike[str]] = (),
) -> tuple[list[Case], list[Failure]]:
    """List the images of a folder (searched through) or of a table, and what in it cannot be used.

    In a folder everything is tried except hidden files, side-cars such as ``.csv`` or ``.json``, and DICOMDIR; the
    format is told by the content. Only headers are read, so a file may still fail in :func:`read_case`. CT, MR and
    PET slices that share a series are parts of a volume and fail; a lone slice is a 2D image.

    A table is a CSV with a header line, or JSON: a list of objects, or an object of such lists whose keys become
    ``split``. ``file`` (or ``image``) is required and relative to ``dataset_dir`` if that is given, else to the table;
    ``label``, ``subject``, ``mask``, ``split`` and ``spacing_mm`` ("row column", or one number, for files that do not
    carry it) are understood, other columns are kept.

    Args:
        dataset_dir: folder to search, or the folder to which the table's paths are relative.
        datalist: CSV or JSON file.
        frame: of a loop: ``"first"``, ``"middle"``, ``"last"``, an index, or ``"all"`` for a case per frame.
        split: keep only the rows of this split.
        label_column: column that holds the class index.
        exclude: files and folders to leave out, such as an output folder inside of ``dataset_dir``.

    Returns:
        The cases, sorted by path or in the table's order, and the failures as dictionaries ``file``, ``reason`` and
        ``remedy``.

    Raises:
        FileNotFoundError: if the folder, the table or files named in it do not exist.
        ValueError: if there is nothing to read, neither argument is given, or the table lacks ``file``.
    """
    if dataset_dir is None and datalist is None:
        raise ValueError("neither dataset_dir nor datalist is given: name a folder of images or a table of them")
    root = Path(dataset_dir) if dataset_dir is not None else Path(datalist or "").parent
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir {str(root)!r} does not exist or is not a folder: check the path")
    if datalist is None:
        rows: list[Case] = [{"image": str(path)} for path in walk_files(root, exclude)]
        if not rows:
            raise ValueError(f"dataset_dir {str(root)!r} holds no image: give one of DICOM, NIfTI, PNG or JPEG files")
    else:
        rows = read_table(Path(datalist), root, label_column)
        if split is not None:
            known = sorted({str(row.get("split", "")) for row in rows})
            rows = [row for row in rows if str(row.get("split", "")) == split]
            if not rows:
                raise ValueError(f"datalist {Path(datalist).name!r} has no row of split {split!r}; it has {known}")
    return _inspect(rows, root, frame)


def read_case(case: Mapping[str, Any], *, color: bool = False) -> MetaTensor:
    """Read the image of a case made by :func:`build_datalist`; its ``spacing_mm``, if any, overrides the file's.

    Returns:
        As :func:`medcf.data.read_study`.

    Raises:
        UnreadableImage: as :func:`medcf.data.read_study`.
    """
    image = read_study(case["image"], case.get("frame", "middle"), color=color)
    if "spacing_mm" in case:
        row, column = case["spacing_mm"]
        image.meta["spacing_mm"] = (float(row), float(column))
        image.affine = torch.as_tensor(planar_affine((float(row), float(column))))
        image.meta["original_affine"] = image.affine.clone()
    return image


def walk_files(root: Path, exclude: Sequence[str | PathLike[str]] = ()) -> Iterator[Path]:
    """Yield the files that could be images, in a fixed order."""
    unwanted = {Path(path).resolve() for path in exclude}
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and (Path(folder) / n).resolve() not in unwanted)
        for name in sorted(files):
            path = Path(folder) / name
            hidden = name.startswith((".", "~$"))
            sidecar = path.suffix.lower() in _SIDECARS or name.lower() in _SIDECAR_NAMES
            if not hidden and not sidecar and path.resolve() not in unwanted:
                yield path


def _inspect(rows: list[Case], root: Path, frame: int | str) -> tuple[list[Case], list[Failure]]:
    """Look into every header, choose frames and name the cases."""
    failures: list[Failure] = []
    found: list[tuple[Case, Study]] = []
    for row in rows:
        try:
            found.append((row, inspect_study(row["image"])))
        except UnreadableImage as error:
            failures.append(describe_failure(error))
    slices = Counter(study.series for _, study in found if study.series and study.modality in _SLICED)
    cases: list[Case] = []
    for row, study in found:
        count = slices.get(study.series, 0) if study.modality in _SLICED else 0
        try:
            if count > 1:
                reason = f"has the wrong dimension: one of {count} slices of a {study.modality} series, a volume"
                raise UnreadableImage(study.path, reason, "Put the plane of interest alone into the folder.")
            frames = list(range(study.num_frames)) if frame == "all" else [choose_frame(study, frame)]
        except UnreadableImage as error:
            failures.append(describe_failure(error))
            continue
        several = frame == "all" and study.num_frames > 1
        cases += [{**row, "frame": i, "_suffix": f"_f{i:04d}" if several else ""} for i in frames]
    for case, name in zip(cases, case_ids(cases, root), strict=True):
        case.pop("_suffix")
        case["case"] = name
    logger.info("%d images to read, %d files that cannot be used", len(cases), len(failures))
    return cases, failures


def describe_failure(error: UnreadableImage) -> Failure:
    """Name the file, the reason and the remedy."""
    return {"file": error.path, "reason": error.reason, "remedy": error.remedy}


def case_ids(cases: list[Case], root: Path) -> list[str]:
    """Name every case after its path; add the suffix, then a number, to those that would be called the same."""
    stems, full = [], []
    for case in cases:
        path = Path(os.path.relpath(case["image"], root))
        suffixes = [s for s in path.suffixes[-2:] if s.lower() in _IMAGE_SUFFIXES]
        suffix = "".join(suffixes) if path.suffix.lower() in _IMAGE_SUFFIXES else ""
        stem = str(path)[: len(str(path)) - len(suffix)]
        parts = [p for p in Path(stem).parts if p not in ("..", os.sep)]
        name = re.sub(r"[^\w.+-]+", "_", "__".join(parts)).strip("._") or "case"
        stems.append(str(case.get("case") or name) + case["_suffix"])
        full.append(name + suffix.replace(".", "_") + case["_suffix"])
    # compared without case: the ids become file names, also where "A" and "a" are the same file
    counts = Counter(s.casefold() for s in stems)
    names = [s if counts[s.casefold()] == 1 else f for s, f in zip(stems, full, strict=True)]
    used: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in used:
            number += 1
            candidate = f"{name}_{number}"
        used.add(candidate.casefold())
        unique.append(candidate)
    return unique


def read_table(table: Path, root: Path, label_column: str, *, series: bool = False) -> list[Case]:
    """Read a table of cases, see :func:`build_datalist`.

    Args:
        table: CSV or JSON file.
        root: folder that its paths are relative to.
        label_column: column that holds the class index.
        series: whether a path may be a folder, which holds a series.

    Raises:
        FileNotFoundError: if the table or files named in it do not exist.
        ValueError: if it cannot be parsed, is empty or lacks ``file``.
    """
    if not table.is_file():
        raise FileNotFoundError(f"datalist {str(table)!r} does not exist: give a CSV or JSON file")
    try:
        records = _json_records(table) if table.suffix.lower() == ".json" else _csv_records(table)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"datalist {table.name!r} cannot be parsed ({error}): give a CSV or JSON file") from error
    if not records:
        raise ValueError(f"datalist {table.name!r} has no rows: list at least one file")
    rows = [_row(record, number, table, root, label_column) for number, record in enumerate(records, start=1)]
    if not series:
        for number, row in enumerate(rows, start=1):
            if "spacing_mm" in row:
                row["spacing_mm"] = _spacing(row["spacing_mm"], f"row {number} of datalist {table.name!r}")
    named = [Path(path) for row in rows for path in (row["image"], row.get("mask")) if path]
    missing = [path for path in named if not path.is_file() and not (series and path.is_dir())]
    if missing:
        shown = ", ".join(path.name for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(
            f"datalist {table.name!r} names files that do not exist: {shown}{more}; paths are relative to {str(root)!r}"
        )
    return rows


def _csv_records(table: Path) -> list[dict[str, Any]]:
    with table.open(newline="", encoding="utf-8-sig") as stream:
        return [dict(record) for record in csv.DictReader(stream)]


def _json_records(table: Path) -> list[dict[str, Any]]:
    content = json.loads(table.read_text(encoding="utf-8-sig"))
    if isinstance(content, Mapping):
        parts = {name: part for name, part in content.items() if isinstance(part, list)}
        content = [
            {"split": name, **item} if isinstance(item, Mapping) else {"split": name, "file": item}
            for name, part in parts.items()
            for item in part
        ]
    if not isinstance(content, list):
        raise ValueError(f"datalist {table.name!r} must hold a list of objects, or an object of such lists")
    return [dict(item) if isinstance(item, Mapping) else {"file": item} for item in content]


def _row(record: dict[str, Any], number: int, table: Path, root: Path, label_column: str) -> Case:
    """Turn one line into a case: empty cells are left out, paths resolved, label and spacing parsed."""
    # csv files the cells beyond the header under the key None
    filled = {str(k): v for k, v in record.items() if k and v is not None and str(v).strip() != ""}
    name = filled.pop("file", None) or filled.pop("image", None)
    if name is None:
        raise ValueError(
            f"datalist {table.name!r} has no column 'file' (row {number}; its columns: {', '.join(map(str, record))}): "
            "name the column with the image paths 'file'"
        )
    row: Case = {"image": str(root / str(name))}
    label = filled.pop(label_column, None)
    filled.pop("label", None)  # the table's own label is not meant if another column was chosen
    if label is not None:
        row["label"] = _integer(label, f"{label_column!r} in row {number} of datalist {table.name!r}")
    if "mask" in filled:
        row["mask"] = str(root / str(filled.pop("mask")))
    return {**filled, **row}


def _integer(value: Any, where: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"{where} must be a class index (0, 1, ...), got {value!r}")
    return int(number)


def _spacing(value: Any, where: str) -> tuple[float, float]:
    parts = value if isinstance(value, list | tuple) else str(value).replace(",", " ").strip("[]() ").split()
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or not all(math.isfinite(n) and n > 0 for n in numbers):
        raise ValueError(f"spacing_mm in {where} must be one or two positive numbers, got {value!r}")
    return numbers[0], numbers[-1]
