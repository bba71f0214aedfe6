# SPDX-License-Identifier: Apache-2.0
"""A case, and tables of cases in JSON or in CSV as saved by any spreadsheet."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["IMAGE_SUFFIXES", "Case", "as_case", "file_name", "read_records", "read_table"]


IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".gz", ".dcm", ".dicom", ".ima", ".img", ".hdr"),
}
_RESERVED = {"manifest.json", "scores.csv", "failures.csv", "summary.json", "demo_inputs", "demo_truth"}
_LONGEST_ID = 150  # bytes: ids become file names, which most file systems limit to 255 bytes


@dataclass(frozen=True)
class Case:
    """The source of one image.

    It also acts as the path of its first file, so MONAI's datasets accept it where they expect a path.

    Attributes:
        id: unique and stable name. It holds no patient data beyond what the path itself reveals.
        files: one file, or the files of a series in slice order.
        frame: for a loop: an index, ``"first"``, ``"middle"`` or ``"last"``; None selects the middle frame.
        mask: file with the subject's mask, on the image's own voxels.
        columns: other table columns: ``label`` (class index), ``subject``, ``split``, ``spacing_mm`` and so on.
    """

    id: str
    files: tuple[Path, ...]
    frame: int | str | None = None
    mask: Path | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]

    def __fspath__(self) -> str:
        return str(self.files[0])

    def __str__(self) -> str:
        return str(self.files[0])

    def item(self) -> dict[str, Any]:
        """Return the case as an item of a MONAI dataset: itself under ``image``, plus ``case`` and its columns."""
        return {**self.columns, "image": self, "case": self.id}


def as_case(source: Case | str | PathLike[str] | Sequence[str | PathLike[str]]) -> Case:
    """Create a case from a file, a folder with one series, or the files of a series.

    Raises:
        ValueError: if the list is empty.
    """
    if isinstance(source, Case):
        return source
    if isinstance(source, str | PathLike):
        path = Path(source).expanduser()
        name = path.name
        for suffix in reversed(path.suffixes[-2:]):
            name = name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
        return Case(file_name(name), (path,))
    parts = list(source)
    if len(parts) == 1:
        return as_case(parts[0])
    files = tuple(Path(os.fspath(part)) for part in parts)
    if not files:
        raise ValueError("path is an empty list: give the files of one series")
    return Case(file_name(files[0].parent.name or "series"), files)


def read_table(
    table: Path, root: Path, label_column: str, class_names: Sequence[str] = (), *, series: bool = False
) -> list[dict[str, Any]]:
    """Read a table of cases, see :func:`medcf.data.find_cases`.

    Args:
        table: CSV or JSON file.
        root: folder to which the table's paths are relative.
        label_column: column with the class: an index, or a name, which is replaced by its index if it is known.
        class_names: names of the classes 0, 1, ...
        series: whether the cases are volumes: a path may be a folder with one series, and spacings are not read.

    Returns:
        The rows: ``image`` (path of a file, or of a series folder) and the table's other columns.

    Raises:
        FileNotFoundError: if the table does not exist, or none of its images does.
        ValueError: if the table cannot be parsed, is empty or lacks ``file``.
    """
    records = read_records(table)
    rows = [_row(record, number, table, root, label_column) for number, record in enumerate(records, start=1)]
    for number, row in enumerate(rows, start=1):
        if "spacing_mm" in row and not series:
            row["spacing_mm"] = _spacing(row["spacing_mm"], f"row {number} of datalist {table.name!r}")
        if "label" in row:
            row["label"] = _label(row["label"], class_names)
    if not any(os.path.exists(row["image"]) for row in rows):  # otherwise each missing file fails on its own
        raise FileNotFoundError(
            f"datalist {table.name!r} lists no existing file, for example {Path(rows[0]['image']).name}; paths are "
            f"relative to {str(root)!r}"
        )
    return rows


def read_records(table: Path, kind: str = "datalist") -> list[dict[str, Any]]:
    """Read the rows of a CSV or JSON table that hold anything.

    Args:
        table: the file.
        kind: what errors call it.

    Raises:
        FileNotFoundError: if the table does not exist.
        ValueError: if it cannot be parsed or is empty.
    """
    if not table.is_file():
        raise FileNotFoundError(f"{kind} {str(table)!r} does not exist: give a CSV or JSON file")
    try:
        records = _json_records(table, kind) if table.suffix.lower() == ".json" else _csv_records(table)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{kind} {table.name!r} cannot be parsed ({error}): give CSV or JSON in UTF-8") from error
    records = [record for record in records if _filled(record)]
    if not records:
        raise ValueError(f"{kind} {table.name!r} has no rows: list at least one file")
    return records


def _csv_records(table: Path) -> list[dict[str, Any]]:
    """Read a CSV file. Some locales separate cells by semicolons, some programs by tabs."""
    with table.open(newline="", encoding="utf-8-sig") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = "," if "," in head else next((mark for mark in ";\t" if mark in head), ",")
        reader = csv.DictReader(stream, delimiter=delimiter, skipinitialspace=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        return [dict(record) for record in reader]


def _json_records(table: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads(table.read_text(encoding="utf-8-sig"))
    if isinstance(content, Mapping):
        parts = {name: part for name, part in content.items() if isinstance(part, list)}
        content = [
            {"split": name, **item} if isinstance(item, Mapping) else {"split": name, "file": item}
            for name, part in parts.items()
            for item in part
        ]
    if not isinstance(content, list):
        raise ValueError(f"{kind} {table.name!r} must hold a list of objects, or an object of such lists")
    return [dict(item) if isinstance(item, Mapping) else {"file": item} for item in content]


def _filled(record: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the cells that hold anything; csv stores cells beyond the header under the key None."""
    return {str(k): v for k, v in record.items() if k and v is not None and str(v).strip() != ""}


def _row(record: dict[str, Any], number: int, table: Path, root: Path, label_column: str) -> dict[str, Any]:
    """Turn one table row into a case: drop empty cells, resolve paths, parse label and spacing."""
    filled = {k: v for k, v in _filled(record).items() if not k.startswith("_")}
    name = filled.pop("file", None) or filled.pop("image", None)
    if name is None:
        raise ValueError(
            f"datalist {table.name!r} has no column 'file' (row {number}; its columns: {', '.join(map(str, record))}): "
            "name the column with the image paths 'file'"
        )
    row: dict[str, Any] = {"image": str(root / str(name))}
    label = filled.pop(label_column, None)
    filled.pop("label", None)  # another column was chosen as the label
    if label is not None:
        row["label"] = label
    for column in ("mask", "segmentation"):
        if column in filled:
            row[column] = str(root / str(filled.pop(column)))
    return {**filled, **row}


def _label(value: Any, class_names: Sequence[str]) -> Any:
    """Return the class index. An unknown name is kept, because inference needs no label."""
    names = [name.casefold() for name in class_names]
    if isinstance(value, str) and value.strip().casefold() in names:
        return names.index(value.strip().casefold())
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else value


def _spacing(value: Any, where: str) -> tuple[float, float]:
    """Return the spacing in mm between rows and between columns."""
    parts = value if isinstance(value, list | tuple) else str(value).replace(",", " ").strip("[]() ").split()
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or not all(math.isfinite(n) and n > 0 for n in numbers):
        raise ValueError(f"spacing_mm in {where} must be one or two positive numbers, got {value!r}")
    return numbers[0], numbers[-1]


def file_name(name: str) -> str:
    """Turn an id from a table or folder into a file name: no folders, nothing reserved, not too long."""
    name = re.sub(r"[\\/\0]+", "__", name).strip(" .") or "case"
    name = re.sub(r"[\ud800-\udfff]", "_", name)  # undecodable bytes: the name is not UTF-8
    if name.casefold() in _RESERVED:
        name += "_case"
    if len(name.encode()) > _LONGEST_ID:  # paths made of UIDs are
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = f"{name.encode()[: _LONGEST_ID - 13].decode(errors='ignore')}_{digest}"
    return name
