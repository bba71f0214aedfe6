# SPDX-License-Identifier: Apache-2.0
"""Lists the volumes of a folder or a table: NIfTI files and DICOM series."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from medcf.data.datalist import Case, Failure, case_ids, check_root, describe_failure, walk_files
from medcf.data.dicom_reader import discreet, open_dicom
from medcf.data.readers import sniff
from medcf.data.tables import read_table
from medcf.data.volumes.dicom import list_dicom_files, open_slices
from medcf.data.volumes.nifti import check_nifti_volume, header_of_pair
from medcf.data.volumes.series_geometry import Slice, arrange
from medcf.runtime.errors import UnreadableImage

__all__ = ["find_volumes"]

logger = logging.getLogger(__name__)


def find_volumes(
    dataset_dir: str | PathLike[str] | None = None,
    datalist: str | PathLike[str] | None = None,
    *,
    split: str | None = None,
    label_column: str = "label",
    exclude: Sequence[str | PathLike[str]] = (),
) -> tuple[list[Case], list[Failure]]:
    """List the volumes of a folder (searched through) or of a table, and what in it cannot be used.

    In a folder every NIfTI volume is a case, and so is every DICOM series (SeriesInstanceUID), however its files are
    spread. Only headers are read, so a volume may still fail in :func:`medcf.data.volumes.read_volume`. A table is one
    as of :func:`medcf.data.build_datalist`, in which ``file`` may also be the folder of a series, and ``mask`` is the
    volume's brain mask.

    Args:
        dataset_dir: folder to search, or the folder to which the table's paths are relative.
        datalist: CSV or JSON file.
        split: keep only the rows of this split.
        label_column: column that holds the class index.
        exclude: files and folders to leave out, such as an output folder inside of ``dataset_dir``.

    Returns:
        The cases: ``image`` (path; the first slice of a series), ``case`` (id, made from the path: unique, no patient
        data), of a series ``files`` (paths in the order of the slices), and the table's columns. And the failures as
        dictionaries ``file``, ``reason`` and ``remedy``.

    Raises:
        FileNotFoundError: if the folder, the table or files named in it do not exist.
        ValueError: if there is nothing to read, neither argument is given, or the table lacks ``file``.
    """
    if dataset_dir is None and datalist is None:
        raise ValueError("neither dataset_dir nor datalist is given: name a folder of volumes or a table of them")
    root = check_root(dataset_dir, datalist)
    if datalist is not None:
        cases, failures = _from_table(Path(datalist), root, split, label_column)
    else:
        paths = list(walk_files(root, exclude))
        if not paths:
            raise ValueError(f"dataset_dir {str(root)!r} holds no volume: give one of NIfTI files or DICOM series")
        cases, failures = _from_files(paths, root)
    for case in cases:
        case["_suffix"] = ""
    for case, name in zip(cases, case_ids(cases, root), strict=True):
        case.pop("_suffix")
        case["case"] = name
    logger.info("%d volumes to read, %d files or series that cannot be used", len(cases), len(failures))
    return cases, failures


def _from_table(table: Path, root: Path, split: str | None, label_column: str) -> tuple[list[Case], list[Failure]]:
    rows = read_table(table, root, label_column, series=True)
    if split is not None:
        known = sorted({str(row.get("split", "")) for row in rows})
        rows = [row for row in rows if str(row.get("split", "")) == split]
        if not rows:
            raise ValueError(f"datalist {table.name!r} has no row of split {split!r}; it has {known}")
    cases: list[Case] = []
    failures: list[Failure] = []
    for row in rows:
        path = header_of_pair(Path(row["image"])) or Path(row["image"])
        try:
            if not path.is_dir() and sniff(path) == "nifti":
                check_nifti_volume(path)
                cases.append({**row, "image": str(path)})
                continue
            files = list_dicom_files(path) if path.is_dir() else [path]
            if len(files) == 1 and sniff(files[0]) == "nifti":
                check_nifti_volume(files[0])
                cases.append({**row, "image": str(files[0])})
                continue
            _expect_dicom(path, files)
            name = row.get("case") or _name(os.path.relpath(path, root))
            cases.append({**row, **_series([s for file in files for s in _slices(file)[1]]), "case": name})
        except UnreadableImage as error:
            failures.append(describe_failure(error))
    return cases, failures


def _from_files(paths: Sequence[Path], root: Path) -> tuple[list[Case], list[Failure]]:
    failures: list[Failure] = []
    found: list[tuple[Path, Case]] = []
    series: dict[str, list[Slice]] = {}
    refused: dict[tuple[Path, str, str], list[Path]] = {}
    for path in paths:
        kind = ""
        try:
            if header_of_pair(path):
                continue  # read with its header
            kind = sniff(path)
            if kind == "nifti":
                check_nifti_volume(path)
                found.append((path, {"image": str(path)}))
            else:
                _expect_dicom(path, [path])
                uid, slices = _slices(path)
                series.setdefault(uid or str(path.parent), []).extend(slices)
        except UnreadableImage as error:
            # an ultrasound loop, or a series in colors, comes as hundreds of files: one line for all of them
            group = path.parent if kind == "dicom" else path
            refused.setdefault((group, error.reason, error.remedy), []).append(path)
    for (_, reason, remedy), files in refused.items():
        others = f" (and so are {len(files) - 1} more files of its folder)" if len(files) > 1 else ""
        failures.append({"file": str(files[0]), "reason": reason + others, "remedy": remedy})
    folders = [_folder(slices) for slices in series.values()]
    for slices, folder in zip(series.values(), folders, strict=True):
        try:
            case = _series(slices)
        except UnreadableImage as error:
            failures.append(describe_failure(error))
            continue
        if folders.count(folder) == 1 and len(case["files"]) > 1:  # else the case is named after its first file
            case["case"] = _name(os.path.relpath(folder, root))
        found.append((slices[0].path, case))
    order = {path: index for index, path in enumerate(paths)}
    return [case for _, case in sorted(found, key=lambda pair: order[pair[0]])], failures


def _expect_dicom(path: Path, files: Sequence[Path]) -> None:
    kinds = {sniff(file) for file in files}
    if kinds != {"dicom"}:
        reason = "is a picture, no volume" if "raster" in kinds else "is no NIfTI or DICOM file"
        remedy = "Give NIfTI files, or folders of DICOM series."
        if path.suffix.lower() in (".mgz", ".mgh"):
            reason, remedy = "is a FreeSurfer volume", f"Convert it: mri_convert {path.name} {path.stem}.nii.gz"
        elif path.suffix.lower() in (".hdr", ".img"):
            reason, remedy = "is no NIfTI file (Analyze files name no orientation)", "Save the volume as NIfTI."
        raise UnreadableImage(path, reason, remedy)


@discreet()
def _slices(path: Path) -> tuple[str, list[Slice]]:
    header = open_dicom(path, volume=True)
    return str(header.get("SeriesInstanceUID", "") or ""), open_slices(path, header)


def _series(slices: Sequence[Slice]) -> Case:
    """Check that the slices make up a volume, and name its files in their order."""
    arranged, _ = arrange(slices)
    files = list(dict.fromkeys(str(one.path) for one in arranged))
    return {"image": files[0], "files": files}


def _folder(slices: Sequence[Slice]) -> str:
    return os.path.commonpath([one.path.parent for one in slices])


def _name(path: str) -> str:
    """Name of a series after its folder."""
    parts = [part for part in Path(path).parts if part not in ("..", ".", os.sep)]
    # the folder that was given is not part of any name: folders are often called after patients
    return "__".join(parts) or "series"
