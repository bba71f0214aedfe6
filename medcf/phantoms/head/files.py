# SPDX-License-Identifier: Apache-2.0
"""Phantoms as files: PNG, NIfTI and DICOM, with their truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UltrasoundImageStorage

from medcf.phantoms.base import PhantomSample
from medcf.phantoms.head.datasets import draw_case
from medcf.phantoms.head.overlays import burn_in
from medcf.phantoms.image_files import (
    check_formats,
    phantom_instance,
    ultrasound_region,
    write_nifti,
    write_png,
    write_table,
)

__all__ = ["write_demo", "write_dicom"]

_SUFFIXES = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}


def write_demo(
    out_dir: str | Path,
    split: str = "demo",
    count: int = 16,
    label: int | None = 0,
    formats: Sequence[str] = ("png", "nifti", "dicom"),
    *,
    overlays: bool | Sequence[bool] = False,
    color: bool = False,
    name: str = "fetal_head",
    seed: int = 0,
    size: tuple[int, int] = (128, 160),
    spacing: float = 0.875,
    truth_dir: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Write readable cases; case i gets format i modulo the number of formats.

    Args:
        out_dir: folder for the images; created if missing. Nothing else is written there.
        split: a key of ``SPLITS``.
        count: number of cases.
        label: class of all cases; None mixes both.
        formats: any of "png", "nifti" and "dicom".
        overlays: whether to burn in text and calipers, for all cases or as a sequence that is cycled.
        color: whether overlays are yellow; such PNG and DICOM files are RGB. NIfTI stays gray.
        name: phantom in ``PHANTOMS``.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm.
        truth_dir: folder for ``truth.csv``, the paired standard planes (``<case>_standard.png``) and the segmentations
            of both planes (``<case>_segmentation.png``, ``<case>_standard_segmentation.png``); None writes no truth.

    Returns:
        One record per case: its row of ``truth.csv``, and ``path`` of the image.
    """
    check_formats(formats, _SUFFIXES)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    truth = Path(truth_dir) if truth_dir is not None else None
    marks = [overlays] if isinstance(overlays, bool) else list(overlays)
    records = []
    for index in range(count):
        subject, sample = draw_case(name, split, index, seed=seed, label=label, size=size, spacing=spacing)
        case = f"{split}-{sample.subject:07d}"
        kind = formats[index % len(formats)]
        pixels = np.rint(sample.image * 255.0).astype(np.uint8)
        if marks[index % len(marks)]:
            pixels = burn_in(sample, color=color and kind != "nifti")
        path = out / f"{case}{_SUFFIXES[kind]}"
        _WRITERS[kind](path, pixels, sample)
        if truth is not None:
            paired = subject.render(seed=1, size=size, spacing=spacing)
            _write_truth(truth, case, sample, paired)
        records.append(_record(case, sample) | {"path": str(path)})
    if truth is not None:
        write_table(truth / "truth.csv", records)
    return records


def write_dicom(path: Path, pixels: NDArray[np.uint8], sample: PhantomSample) -> None:
    """Write an Ultrasound Image Storage instance whose UIDs depend only on the phantom.

    Args:
        path: file to write.
        pixels: (H, W) or (H, W, 3) uint8 image.
        sample: subject, pose and spacing.
    """
    key = f"medcf-phantom-{sample.subject}"
    ds = phantom_instance(pixels, key, repr(sample.pose), f"HEAD{sample.subject:07d}", sample.subject)
    ds.SOPClassUID, ds.Modality = UltrasoundImageStorage, "US"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OBSTETRICAL", "0001"]
    ds.PatientOrientation = ""
    if pixels.ndim == 3:
        ds.UltrasoundColorDataPresent = 1
    ds.SequenceOfUltrasoundRegions = [
        ultrasound_region((0, 0, pixels.shape[0] - 1, pixels.shape[1] - 1), sample.spacing_mm)
    ]
    ds.save_as(path, enforce_file_format=True)


_WRITERS: dict[str, Callable[[Path, NDArray[np.uint8], PhantomSample], None]] = {
    "png": write_png,
    "nifti": write_nifti,
    "dicom": write_dicom,
}


def _record(case: str, sample: PhantomSample) -> dict[str, Any]:
    pose = asdict(sample.pose) if is_dataclass(sample.pose) and not isinstance(sample.pose, type) else sample.pose
    return {
        "case": case,
        "subject": sample.subject,
        "label": sample.label,
        "quality": round(sample.quality, 6),
        **{name: round(score, 6) for name, score in sample.concepts.items()},
        "spacing_row": sample.spacing_mm[0],
        "spacing_col": sample.spacing_mm[1],
        "hc_mm": round(sample.hc_mm, 4),
        "bpd_mm": round(sample.bpd_mm, 4),
        "pose": json.dumps(pose),
    }


def _write_truth(folder: Path, case: str, sample: PhantomSample, paired: PhantomSample) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / f"{case}_standard.png", np.rint(paired.image * 255.0).astype(np.uint8), paired)
    write_png(folder / f"{case}_standard_segmentation.png", paired.segmentation, paired)
    write_png(folder / f"{case}_segmentation.png", sample.segmentation, sample)
