# SPDX-License-Identifier: Apache-2.0
"""Chest radiographs as files: DICOM (Computed Radiography), PNG and NIfTI, with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ComputedRadiographyImageStorage

from medcf.phantoms.chest.chest_xray import ChestSample
from medcf.phantoms.chest.dataset import ChestCase, draw_chest
from medcf.phantoms.chest.states import CLASS_NAMES, ChestState
from medcf.phantoms.image_files import (
    SUFFIXES,
    check_formats,
    phantom_instance,
    write_nifti,
    write_picture,
    write_table,
)

__all__ = ["write_chest_demo", "write_chests", "write_radiograph"]


def write_chest_demo(
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
) -> list[dict[str, Any]]:
    """Write readable cases: half of them sick, with the three diseases in turn, and half with a device.

    Case i gets format i modulo the number of formats. Neither the disease nor the device depends on the format.

    Args:
        out_dir: folder for the images; created if missing. Nothing else is written there.
        split: a key of ``SPLITS``.
        count: number of cases.
        formats: any of "dicom", "png" and "nifti".
        labels: classes, which are cycled; None alternates normal and the three diseases.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm; None fits each subject's field into the rows.
        truth_dir: folder for ``truth.csv``, the same subjects without disease and with other grain
            (``<case>_normal.png``), the segmentation (``<case>_segmentation.png``), the lungs
            (``<case>_lungs_mask.png``) and the lesion (``<case>_lesion_mask.nii.gz``, mm of tissue or fluid in place of
            air); None writes no truth.

    Returns:
        One record per case: its row of ``truth.csv``, and ``path`` of the image.

    Raises:
        ValueError: if a format is unknown.
    """
    check_formats(formats)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    cycle = (0, 1, 0, 2, 0, 3) if labels is None else tuple(labels)
    records = []
    for index in range(count):
        # two with and two without a device, so that each class has both
        device = float(index % 4 >= 2)
        case = draw_chest(split, index, seed=seed, label=cycle[index % len(cycle)], devices=device)
        sample = case.render(size=size, spacing=spacing)
        name = f"{split}-{sample.subject:07d}"
        kind = formats[index % len(formats)]
        path = out / f"{name}{SUFFIXES[kind]}"
        write_radiograph(path, sample.image, sample)
        if truth_dir is not None:
            healthy = case.render(ChestState(), again=True, size=size, spacing=spacing)
            _write_truth(Path(truth_dir), name, sample, healthy)
        records.append(_record(name, case, sample) | {"path": str(path)})
    if truth_dir is not None:
        write_table(Path(truth_dir) / "truth.csv", records)
    return records


def write_chests(
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

    Subjects, states, devices and captions are those of `ChestDataset` with the same split, seed and options.

    Args:
        out_dir: folder; created if missing.
        split: a key of ``SPLITS``; also written into the table.
        count: number of cases.
        label: class of all cases; None mixes all.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm; None fits each subject's field into the rows.
        truth: also write ``normal``: the same subjects without disease.
        kind: format of the images: "png", "dicom" or "nifti".
        options: options of `draw_chest`.

    Returns:
        One record per case: the row of ``labels.csv``. Paths are relative to ``out_dir``.
    """
    if kind not in SUFFIXES:
        raise ValueError(f"kind={kind!r}: choose from {', '.join(SUFFIXES)}")
    out, records = Path(out_dir), []
    for folder in ("images", "segmentations", *(["normal"] if truth else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        case = draw_chest(split, index, seed=seed, label=label, **options)
        sample = case.render(size=size, spacing=spacing)
        name = f"{split}-{sample.subject:07d}"
        files = {"file": f"images/{name}{SUFFIXES[kind]}", "segmentation": f"segmentations/{name}.png"}
        write_radiograph(out / files["file"], sample.image, sample)
        write_radiograph(out / files["segmentation"], sample.segmentation, sample)
        if truth:
            files["normal"] = f"normal/{name}{SUFFIXES[kind]}"
            healthy = case.render(ChestState(), again=True, size=size, spacing=spacing)
            write_radiograph(out / files["normal"], healthy.image, healthy)
        records.append(files | _record(name, case, sample) | {"split": split})
    write_table(out / "labels.csv", records)
    return records


def write_radiograph(path: Path, image: NDArray[Any], sample: ChestSample) -> None:
    """Write an image or labels in the format that the file's suffix names, with the pixel spacing.

    Args:
        path: file with suffix .png (spacing in the pHYs chunk), .dcm or .nii.gz (first axis across, second axis down).
        image: (H, W) gray values in [0, 1], or labels as uint8.
        sample: subject, state and spacing.
    """
    pixels = image if image.dtype == np.uint8 else np.rint(image * 255.0).astype(np.uint8)
    write_picture(path, pixels, sample, _write_dicom)


def _write_dicom(path: Path, pixels: NDArray[np.uint8], sample: ChestSample) -> None:
    """Write a Computed Radiography instance."""
    ds = phantom_instance(pixels, f"medcf-chest-{sample.subject}", "", f"CHEST{sample.subject:07d}", sample.subject)
    ds.SOPClassUID, ds.Modality = ComputedRadiographyImageStorage, "CR"
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", "AP"
    ds.PatientOrientation = ["L", "F"]  # columns run to the patient's left, rows to the feet
    ds.ImagerPixelSpacing = ds.PixelSpacing = [f"{value:.10g}" for value in sample.spacing_mm]
    ds.save_as(path, enforce_file_format=True)


def _write_truth(folder: Path, name: str, sample: ChestSample, healthy: ChestSample) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_radiograph(folder / f"{name}_normal.png", healthy.image, healthy)
    write_radiograph(folder / f"{name}_segmentation.png", sample.segmentation, sample)
    write_radiograph(folder / f"{name}_lungs_mask.png", sample.lungs, sample)
    write_nifti(folder / f"{name}_lesion_mask.nii.gz", sample.lesion_mm, sample)


def _record(name: str, case: ChestCase, sample: ChestSample) -> dict[str, Any]:
    state, sick = sample.state, sample.label > 0
    return {
        "case": name,
        "subject": sample.subject,
        "label": sample.label,
        "class": CLASS_NAMES[sample.label],
        "caption": case.caption,
        "side": state.side or ("both" if sick else ""),
        "lobe": state.lobe or "",
        "extent": round(state.extent, 6) if sick else 0.0,
        "severity": round(state.severity, 6) if sick else 0.0,
        "age_group": sample.age_group,
        "device": sample.device or "",
        "heart_ratio": round(sample.heart_ratio, 4),
        "spacing_row": sample.spacing_mm[0],
        "spacing_col": sample.spacing_mm[1],
    }
