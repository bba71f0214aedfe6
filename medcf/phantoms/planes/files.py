# SPDX-License-Identifier: Apache-2.0
"""Planes as files: DICOM (Ultrasound Image Storage), PNG and NIfTI, with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UltrasoundImageStorage

from medcf.phantoms.image_files import (
    SUFFIXES,
    check_formats,
    phantom_instance,
    ultrasound_region,
    write_picture,
    write_table,
)
from medcf.phantoms.planes.dataset import PlaneCase, draw_plane, gray
from medcf.phantoms.planes.fetal_planes import PlaneSample
from medcf.phantoms.planes.states import PLANE_NAMES

__all__ = ["write_plane", "write_planes", "write_planes_demo"]


def write_planes_demo(
    out_dir: str | Path,
    split: str = "demo",
    count: int = 16,
    formats: Sequence[str] = ("dicom", "png", "nifti"),
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    size: tuple[int, int] = (128, 128),
    spacing: float | None = None,
    truth_dir: str | Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Write readable cases: all classes in turn, one of each subject, at both sites.

    Case i gets format i modulo the number of formats. Neither the class nor the site depends on the format.

    Args:
        out_dir: folder for the images; created if missing. Nothing else is written there.
        split: a key of ``SPLITS``.
        count: number of cases.
        formats: any of "dicom", "png" and "nifti".
        labels: classes, which are cycled; None takes all six.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm; None fits each picture's section into the rows.
        truth_dir: folder for ``truth.csv``, the same planes at the other site with the anatomy at the same pixels
            (``<case>_other_site.png``), with other speckle (``<case>_again.png``), and the segmentation
            (``<case>_segmentation.png``); None writes no truth.
        options: options of `draw_plane`.

    Returns:
        One record per case: its row of ``truth.csv``, and ``path`` of the image.

    Raises:
        ValueError: if a format is unknown.
    """
    check_formats(formats)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    cycle = tuple(range(len(PLANE_NAMES))) if labels is None else tuple(labels)
    chosen: dict[str, Any] = {"site": None, "planes": 1, **options}
    grid: dict[str, Any] = {"size": size, "spacing": spacing}
    records = []
    for index in range(count):
        case = draw_plane(split, index, seed=seed, label=cycle[index % len(cycle)], **chosen)
        sample = case.render(**grid)
        name = _name(split, case)
        path = out / f"{name}{SUFFIXES[formats[index % len(formats)]]}"
        write_plane(path, gray(sample), sample)
        if truth_dir is not None:
            folder = Path(truth_dir)
            folder.mkdir(parents=True, exist_ok=True)
            for part, picture in _truth(case, grid).items():
                write_plane(folder / f"{name}_{part}.png", gray(picture), picture)
            write_plane(folder / f"{name}_segmentation.png", sample.segmentation, sample)
        records.append(_record(name, case, sample) | {"path": str(path)})
    if truth_dir is not None:
        write_table(Path(truth_dir) / "truth.csv", records)
    return records


def write_planes(
    out_dir: str | Path,
    split: str = "demo",
    count: int = 16,
    label: int | None = None,
    *,
    seed: int = 0,
    size: tuple[int, int] = (128, 128),
    spacing: float | None = None,
    truth: bool = False,
    kind: str = "png",
    **options: Any,
) -> list[dict[str, Any]]:
    """Write a labeled set: ``images``, ``segmentations`` and a ``labels.csv`` that trainings read as a datalist.

    Subjects, planes, sites and captions are those of `PlanesDataset` with the same split, seed and options.

    Args:
        out_dir: folder; created if missing.
        split: a key of ``SPLITS``; also written into the table.
        count: number of cases.
        label: class of all cases; None mixes all.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm; None fits each picture's section into the rows.
        truth: also write ``other_site`` and ``again``: the same planes at the other site, and with other speckle.
        kind: format of the images: "png", "dicom" or "nifti".
        options: options of `draw_plane`.

    Returns:
        One record per case: the row of ``labels.csv``. Paths are relative to ``out_dir``.

    Raises:
        ValueError: if the format is unknown.
    """
    if kind not in SUFFIXES:
        raise ValueError(f"kind={kind!r}: choose from {', '.join(SUFFIXES)}")
    grid: dict[str, Any] = {"size": size, "spacing": spacing}
    out = Path(out_dir)
    for folder in ("images", "segmentations", *(("other_site", "again") if truth else ())):
        (out / folder).mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(count):
        case = draw_plane(split, index, seed=seed, label=label, **options)
        sample = case.render(**grid)
        name = _name(split, case)
        files = {"file": f"images/{name}{SUFFIXES[kind]}", "segmentation": f"segmentations/{name}.png"}
        write_plane(out / files["file"], gray(sample), sample)
        write_plane(out / files["segmentation"], sample.segmentation, sample)
        for part, picture in (_truth(case, grid) if truth else {}).items():
            files[part] = f"{part}/{name}{SUFFIXES[kind]}"
            write_plane(out / files[part], gray(picture), picture)
        records.append(files | _record(name, case, sample) | {"split": split})
    write_table(out / "labels.csv", records)
    return records


def write_plane(path: Path, pixels: NDArray[np.uint8], sample: PlaneSample) -> None:
    """Write gray values or labels in the format that the file's suffix names, with the pixel spacing.

    Args:
        path: file with suffix .png (spacing in the pHYs chunk), .dcm or .nii.gz (first axis across, second axis down).
        pixels: (H, W) uint8.
        sample: subject, plane, site and spacing.
    """
    write_picture(path, pixels, sample, _write_dicom)


def _write_dicom(path: Path, pixels: NDArray[np.uint8], sample: PlaneSample) -> None:
    """Write an Ultrasound Image Storage instance whose one region is the sector."""
    key, name = f"medcf-planes-{sample.subject}", f"PLANES{sample.subject:07d}"
    ds = phantom_instance(pixels, key, f"{sample.site} {sample.state!r}", name, sample.subject)
    ds.SOPClassUID, ds.Modality = UltrasoundImageStorage, "US"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OBSTETRICAL", "0001"]
    ds.PatientOrientation = ""
    ds.PatientSex = "F"  # the mother is the patient
    ds.InstitutionName = f"medcf phantom site {sample.site}"
    ds.SequenceOfUltrasoundRegions = [ultrasound_region(_extent(sample.sector), sample.spacing_mm)]
    ds.save_as(path, enforce_file_format=True)


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return first row, first column, last row and last column of a mask; the whole picture if it is empty."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, mask.shape[0] - 1, mask.shape[1] - 1
    return int(rows[0]), int(cols[0]), int(rows[-1]), int(cols[-1])


def _truth(case: PlaneCase, grid: dict[str, Any]) -> dict[str, PlaneSample]:
    """Return the paired truth by name."""
    other = case.render(site=case.other, frame=case.site, again=True, **grid)
    return {"other_site": other, "again": case.render(again=True, **grid)}


def _name(split: str, case: PlaneCase) -> str:
    return f"{split}-{case.subject.seed:07d}-{case.number}"


def _record(name: str, case: PlaneCase, sample: PlaneSample) -> dict[str, Any]:
    return {
        "case": name,
        "subject": sample.subject,
        "label": sample.label,
        "class": PLANE_NAMES[sample.label],
        "variant": sample.state.variant,
        "site": sample.site,
        "caption": case.prompt,
        "weeks": round(sample.weeks, 3),
        "spacing_row": sample.spacing_mm[0],
        "spacing_col": sample.spacing_mm[1],
    }
