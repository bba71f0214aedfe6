# SPDX-License-Identifier: Apache-2.0
"""Lists of cases, from a folder or from a table.

A case is a dictionary: ``image`` (path), ``case`` (an id that is unique and stable), ``frame``, and what a table adds:
``label`` (int), ``subject``, ``mask`` (path), ``split``, ``spacing_mm`` and any other column.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medcf.data.pixels import planar_affine
from medcf.data.readers import Study, choose_frame, inspect_study, read_study
from medcf.data.tables import Case, read_table
from medcf.runtime.errors import UnreadableImage
from medcf.runtime.owned import is_ours

__all__ = ["build_datalist", "read_case"]

logger = logging.getLogger(__name__)

_SIDECARS = {
    *(".csv", ".tsv", ".json", ".txt", ".md", ".rst", ".yaml", ".yml", ".xml", ".html", ".log", ".pdf", ".py", ".bval"),
    *(".sha256", ".md5", ".pt", ".npz", ".npy", ".ini", ".cfg", ".conf", ".xlsx", ".docx"),
}
_SIDECAR_NAMES = {"dicomdir", "readme", "license", "licence", "thumbs.db", "desktop.ini"}
_IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".gz", ".dcm", ".dicom", ".ima", ".img", ".hdr"),
}
_RESERVED = {"manifest.json", "scores.csv", "failures.csv", "summary.json", "demo_inputs", "demo_truth"}
_LONGEST_ID = 150  # bytes: the ids become file names, of which most file systems take 255
_SLICED = ("CT", "MR", "PT", "NM")

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
    root = check_root(dataset_dir, datalist)
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


def check_root(dataset_dir: str | PathLike[str] | None, datalist: str | PathLike[str] | None) -> Path:
    """Return the folder to search, or the one that the table's paths are relative to.

    Raises:
        FileNotFoundError: if it does not exist, or is a file.
    """
    root = Path(dataset_dir) if dataset_dir is not None else Path(datalist or "").parent
    if root.is_file():
        raise FileNotFoundError(f"dataset_dir {str(root)!r} is a file: give the folder it is in, or a datalist")
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir {str(root)!r} does not exist or is not a folder: check the path")
    return root


def walk_files(root: Path, exclude: Sequence[str | PathLike[str]] = ()) -> Iterator[Path]:
    """Yield the files that could be images, in a fixed order; folders below ``root`` that hold results are left out."""
    unwanted = {Path(path).resolve() for path in exclude}
    for folder, names, files in os.walk(root):
        below = {name: Path(folder) / name for name in sorted(names) if not name.startswith(".")}
        names[:] = [n for n, path in below.items() if path.resolve() not in unwanted and not _holds_results(path)]
        for name in sorted(files):
            path = Path(folder) / name
            hidden = name.startswith((".", "~$"))
            sidecar = path.suffix.lower() in _SIDECARS or name.lower() in _SIDECAR_NAMES
            if not hidden and not sidecar and path.resolve() not in unwanted:
                yield path


def _holds_results(folder: Path) -> bool:
    """Tell an output folder by its manifest: counterfactuals must not be taken for images of patients."""
    found = is_ours(folder / "manifest.json")
    if found:
        logger.warning("%s holds the results of a run and is left out", folder.name)
    return found


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
        stems.append(_file_name(str(case.get("case") or name)) + case["_suffix"])
        full.append(_file_name(name + suffix.replace(".", "_")) + case["_suffix"])
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


def _file_name(name: str) -> str:
    """Make an id that a table or a folder gave the name of a file: no folders, nothing reserved, not too long."""
    name = re.sub(r"[\\/\0]+", "__", name).strip(" .") or "case"
    if name.casefold() in _RESERVED:
        name += "_case"
    if len(name.encode()) > _LONGEST_ID:  # trees of UIDs are
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = f"{name.encode()[: _LONGEST_ID - 13].decode(errors='ignore')}_{digest}"
    return name
