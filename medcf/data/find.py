# SPDX-License-Identifier: Apache-2.0
"""Finds the cases in a folder or a table, pictures or volumes, and lists the files that cannot be used."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from medcf.data.case import IMAGE_SUFFIXES, Case, file_name, read_table
from medcf.data.dicom.geometry import SlicePlace, arrange
from medcf.data.dicom.header import VOLUME_MODALITIES, open_dicom, quiet_pydicom
from medcf.data.dicom.series import list_dicom_files, open_slices
from medcf.data.file_info import FileInfo, choose_frame, inspect_file, sniff
from medcf.data.image import Limits
from medcf.data.nifti import header_of_pair
from medcf.data.walk import walk_files
from medcf.runtime.errors import Failure, UnreadableImage, as_damage

__all__ = ["find_cases"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def find_cases(
    dataset_dir: str | PathLike[str] | None = None,
    datalist: str | PathLike[str] | None = None,
    *,
    files: Sequence[str | PathLike[str]] | None = None,
    spatial_dims: int = 2,
    frame: int | str = "middle",
    split: str | None = None,
    label_column: str = "label",
    class_names: Sequence[str] = (),
    exclude: Sequence[str | PathLike[str]] = (),
    max_pixels: float = Limits.pixels,
    max_voxels: float = Limits.voxels,
) -> tuple[list[Case], list[Failure]]:
    """List the images in a folder (searched recursively), a file or a table, and the files that cannot be used.

    In a folder every file is tried except hidden files, sidecar files such as ``.csv`` or ``.json``, label maps next to
    images, and DICOMDIR; the content determines the format. Only headers are read, so a case may still fail in
    :func:`medcf.read`. In a search for pictures, CT, MR and PET slices that share a series belong to a volume and fail;
    a single slice is a picture. In a search for volumes each NIfTI, NRRD or MetaImage volume is a case, and so is each
    DICOM series (SeriesInstanceUID), wherever its files are.

    A table is a CSV file with a header line, or JSON: a list of objects, or an object of such lists whose keys become
    ``split``. ``file`` (or ``image``) is required; it is relative to ``dataset_dir`` if that is given, otherwise to the
    table. For a volume it may be a series folder. ``label``, ``subject``, ``split``, ``mask`` (for a volume, its
    subject; for a picture, its ``segmentation``), ``segmentation`` and ``spacing_mm`` ("row column", or one number, for
    pictures without their own) are interpreted; other columns are kept.

    Args:
        dataset_dir: folder to search, one file, or the folder to which the table's paths are relative.
        datalist: CSV or JSON file.
        files: only these files below ``dataset_dir``, as if the folder held nothing else.
        spatial_dims: 2 finds pictures and loops, 3 finds volumes.
        frame: for a loop: ``"first"``, ``"middle"``, ``"last"``, an index, or ``"all"`` for one case per frame.
        split: keep only the rows of this split, or of this section of a JSON file.
        label_column: column with the class: its index or its name.
        class_names: names of the classes 0, 1, ...
        exclude: files and folders to leave out, such as an output folder inside ``dataset_dir``.
        max_pixels: size limit for a picture.
        max_voxels: size limit for a volume.

    Returns:
        The cases, sorted by path or in table order, with ids made from their paths: unique, stable, and without patient
        data beyond the path. And the failures.

    Raises:
        FileNotFoundError: if the folder or the table does not exist, or none of the table's files does.
        ValueError: if there is nothing to read, neither argument is given, or the table lacks ``file``.
    """
    kind = "images" if spatial_dims == 2 else "volumes"
    if dataset_dir is None and datalist is None:
        raise ValueError(f"neither dataset_dir nor datalist is given: name a folder of {kind} or a table of them")
    root, limits = _check_root(dataset_dir, datalist), Limits(max_pixels, max_voxels)
    closed: list[Failure] = []
    if datalist is not None:
        rows = read_table(Path(datalist), root, label_column, class_names, series=spatial_dims == 3)
        if split is not None:
            known = sorted({str(row.get("split", "")) for row in rows})
            rows = [row for row in rows if str(row.get("split", "")) == str(split)]
            if not rows:
                raise ValueError(f"datalist {Path(datalist).name!r} has no row of split {split!r}; it has {known}")
    else:
        if files is None:
            files, closed = walk_files(root, exclude) if root.is_dir() else ([root], [])
        rows = [{"image": str(path)} for path in files]
        if not rows and not closed:
            formats = "DICOM, NIfTI, PNG or JPEG files" if spatial_dims == 2 else "NIfTI files or DICOM series"
            raise ValueError(f"dataset_dir {str(root)!r} holds no {kind[:-1]}: give one of {formats}")
    root = root if root.is_dir() else root.parent
    if spatial_dims == 2:
        rows = [{"segmentation" if key == "mask" else key: value for key, value in row.items()} for row in rows]
        found, failures = _pictures(rows, frame, limits)
    elif datalist is not None:
        found, failures = _volumes(rows, root, limits)
    else:
        found, failures = _volumes_of_files(rows, root, limits)
    failures = closed + failures
    cases = [_case(row, name) for row, name in zip(found, _case_ids(found, root), strict=True)]
    logger.info("%d %s to read, %d files that cannot be used", len(cases), kind, len(failures))
    return cases, failures


def _case(row: Row, name: str) -> Case:
    """Create a case from a row: everything but id, files, frame and mask stays a column."""
    columns = {key: value for key, value in row.items() if key not in ("image", "mask", "case")}
    columns = {key: value for key, value in columns.items() if not key.startswith("_")}
    files = tuple(Path(file) for file in row.get("_files") or [row["image"]])
    return Case(name, files, row.get("_frame"), Path(row["mask"]) if "mask" in row else None, columns)


def _check_root(dataset_dir: str | PathLike[str] | None, datalist: str | PathLike[str] | None) -> Path:
    """Return the folder or file to search, or the folder to which the table's paths are relative.

    Raises:
        FileNotFoundError: if it does not exist, or is a table.
    """
    root = Path(dataset_dir) if dataset_dir is not None else Path(datalist or "").parent
    if root.is_file() and (datalist is not None or root.suffix.lower() in (".csv", ".tsv", ".json")):
        raise FileNotFoundError(f"dataset_dir {str(root)!r} is a file: give a table as datalist")
    if not root.exists():
        raise FileNotFoundError(f"dataset_dir {str(root)!r} does not exist: check the path")
    return root


def _pictures(rows: list[Row], frame: int | str, limits: Limits) -> tuple[list[Row], list[Failure]]:
    """Inspect every header and choose frames."""
    failures: list[Failure] = []
    inspected: list[tuple[Row, FileInfo]] = []
    for row in rows:
        try:
            inspected.append((row, _expect_picture(inspect_file(row["image"], limits))))
        except UnreadableImage as error:
            failures.append(Failure.of(error))
    slices = Counter(info.series for _, info in inspected if info.series and info.modality in VOLUME_MODALITIES)
    found: list[Row] = []
    for row, info in inspected:
        count = slices.get(info.series, 0) if info.modality in VOLUME_MODALITIES else 0
        try:
            if count > 1:
                reason = f"is one of {count} slices of a {info.modality} series, which is a volume"
                raise UnreadableImage(info.path, reason, "Put only the plane of interest into the folder.")
            frames = list(range(info.num_frames)) if frame == "all" else [choose_frame(info, frame)]
        except UnreadableImage as error:
            failures.append(Failure.of(error))
            continue
        several = frame == "all" and info.num_frames > 1
        found += [{**row, "_frame": i, "_suffix": f"_f{i:04d}" if several else ""} for i in frames]
    return found, failures


def _expect_picture(info: FileInfo) -> FileInfo:
    if info.spatial_dims == 3:
        size = f" of {info.num_frames} slices" if info.num_frames > 1 else ""
        reason = f"is a volume{size}, but a 2D image is expected"
        raise UnreadableImage(info.path, reason, "Extract the plane of interest and save it.")
    return info


def _volumes(rows: list[Row], root: Path, limits: Limits) -> tuple[list[Row], list[Failure]]:
    """Inspect the headers of a table's files and folders."""
    found: list[Row] = []
    failures: list[Failure] = []
    for row in rows:
        path = header_of_pair(Path(row["image"])) or Path(row["image"])
        try:
            files = list_dicom_files(path) if os.path.isdir(path) else [path]
            if len(files) == 1 and sniff(files[0]) in ("nifti", "itk"):
                found.append({**row, "image": str(_expect_volume(files[0], limits))})
                continue
            for file in files:
                _expect_slice(file)
            name = row.get("case") or _folder_name(os.path.relpath(path, root))
            found.append(
                {**row, **_series([place for file in files for place in _slices(file)[1]], limits), "case": name}
            )
        except UnreadableImage as error:
            failures.append(Failure.of(error))
    return found, failures


def _volumes_of_files(rows: list[Row], root: Path, limits: Limits) -> tuple[list[Row], list[Failure]]:
    """Inspect every header in a folder and group the files by series."""
    failures: list[Failure] = []
    placed: list[tuple[str, Row]] = []
    series: dict[str, list[SlicePlace]] = {}
    refused: dict[tuple[Path, str, str], list[Path]] = {}
    for path in (Path(row["image"]) for row in rows):
        kind = ""
        try:
            kind = sniff(path)
            if kind in ("nifti", "itk"):
                placed.append((str(path), {"image": str(_expect_volume(path, limits))}))
            else:
                _expect_slice(path)
                uid, slices = _slices(path)
                series.setdefault(uid or str(path.parent), []).extend(slices)
        except UnreadableImage as error:
            # an ultrasound loop, or a color series, may consist of hundreds of files: report them in one line
            group = path.parent if kind == "dicom" else path
            refused.setdefault((group, error.reason, error.remedy), []).append(path)
    for (_, reason, remedy), files in refused.items():
        others = f" (and so are {len(files) - 1} more files of its folder)" if len(files) > 1 else ""
        failures.append(Failure(str(files[0]), "read", reason + others, remedy))
    folders = [os.path.commonpath([place.path.parent for place in slices]) for slices in series.values()]
    for slices, folder in zip(series.values(), folders, strict=True):
        try:
            row = _series(slices, limits)
        except UnreadableImage as error:
            failures.append(Failure.of(error))
            continue
        if folders.count(folder) == 1 and len(row["_files"]) > 1:  # otherwise the case is named after its first file
            row["case"] = _folder_name(os.path.relpath(folder, root))
        placed.append((str(slices[0].path), row))
    order = {row["image"]: index for index, row in enumerate(rows)}
    return [row for _, row in sorted(placed, key=lambda pair: order[pair[0]])], failures


def _expect_volume(path: Path, limits: Limits) -> Path:
    info = inspect_file(path, limits)
    if info.spatial_dims == 2:
        raise UnreadableImage(path, f"is not a volume (shape {info.size[0]} x {info.size[1]})", "Give a volume.")
    return path


def _expect_slice(path: Path) -> None:
    if sniff(path) != "dicom":
        if inspect_file(path).source_format == "raster":
            raise UnreadableImage(path, "is a picture, not a volume", "Give NIfTI files, or folders of DICOM series.")
        raise UnreadableImage(path, "is one of several files of a case", "Give one NIfTI file, or one DICOM series.")


@quiet_pydicom()
def _slices(path: Path) -> tuple[str, list[SlicePlace]]:
    with as_damage(path):
        header = open_dicom(path)
        # two patients may share a series, if their UIDs were copied
        keys = (header.get("SeriesInstanceUID"), header.get("StudyInstanceUID"), header.get("PatientID"))
        return "|".join(str(key or "") for key in keys) if keys[0] else "", open_slices(path, header)


def _series(slices: Sequence[SlicePlace], limits: Limits) -> Row:
    """Check that the slices form a volume, and list its files in order."""
    with as_damage(slices[0].path), np.errstate(all="ignore"):
        arranged, _ = arrange(slices)
    limits.check(arranged[0].path, (*arranged[0].size[::-1], len(arranged)))
    files = list(dict.fromkeys(str(place.path) for place in arranged))
    return {"image": files[0], "_files": files}


def _folder_name(path: str) -> str:
    """Name a series after its folder."""
    parts = [part for part in Path(path).parts if part not in ("..", ".", os.sep)]
    # the given folder is not part of any name: folders are often named after patients
    return "__".join(parts) or "series"


def _case_ids(rows: list[Row], root: Path) -> list[str]:
    """Name each case after its path; if names collide, append the suffix, then a number."""
    stems, full = [], []
    for row in rows:
        path = Path(os.path.relpath(row["image"], root))
        suffixes = [s for s in path.suffixes[-2:] if s.lower() in IMAGE_SUFFIXES]
        suffix = "".join(suffixes) if path.suffix.lower() in IMAGE_SUFFIXES else ""
        stem = str(path)[: len(str(path)) - len(suffix)]
        parts = [p for p in Path(stem).parts if p not in ("..", os.sep)]
        name = re.sub(r"[^\w.+-]+", "_", "__".join(parts)).strip("._") or "case"
        stems.append(file_name(str(row.get("case") or name)) + row.get("_suffix", ""))
        full.append(file_name(name + suffix.replace(".", "_")) + row.get("_suffix", ""))
    # compare case-insensitively: ids become file names, and on some systems "A" and "a" are the same file
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
