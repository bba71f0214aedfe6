# SPDX-License-Identifier: Apache-2.0
"""Cases with a planted change, read from DICOM files that come with pydicom or are made here; no network runs."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

import medcf
from medcf.data import Case, to_luminance
from medcf.data.case import as_case
from medcf.inference.case_result import CaseResult

#: Files that pydicom brings along: kind of image to name.
FILES = {
    "ct": "CT_small.dcm",
    "mr": "MR_small.dcm",
    "color loop": "examples_ybr_color.dcm",
    "palette": "examples_palette.dcm",
}


def file_of(name):
    """Return a file of pydicom's own, found offline."""
    return Path(get_testdata_file(name, download=False))


def planted(source, amount=0.3, **options) -> CaseResult:
    """Read an image and brighten a box in its middle, an eighth of each side wide."""
    case = source if isinstance(source, Case) else as_case(source)
    image = medcf.read(case)
    original = to_luminance(image).as_subclass(torch.Tensor).numpy()[0].astype(np.float32)
    low, high = (0.0, 1.0) if original.ndim == 2 else (float(original.min()), float(original.max()))
    counterfactual = original.copy()
    box = middle(original.shape)
    counterfactual[box] = np.clip(counterfactual[box] + amount * (high - low), low, high)
    difference = ((counterfactual - original) / max(high - low, 1e-9)).astype(np.float32)
    known = {
        "case": case.id,
        "path": case.path,
        "files": case.files,
        "trajectory": None,
        "affine": np.asarray(image.affine),
        "source_format": image.meta["source_format"],
        "window": (low, high),
        "row": {"target": 1, "frame": image.meta["frame"], "flipped": True, "file": str(case.path)},
        "on_grid": {"image": image},
        "original": original,
        "counterfactual": counterfactual,
        "difference": difference,
    }
    return CaseResult(**{**known, **options})


def middle(shape):
    """Return the box that `planted` brightens."""
    return tuple(slice(size // 2, size // 2 + max(size // 8, 1)) for size in shape)


def ct_series(folder: Path, count=5, tilt=0.0) -> Path:
    """Write a CT series of which every slice differs: pydicom's CT shifted, in files whose order is not the slices'."""
    folder.mkdir(parents=True, exist_ok=True)
    source = dcmread(file_of(FILES["ct"]))
    uids = [generate_uid(entropy_srcs=[str(folder.name), name]) for name in ("study", "series", "frame")]
    for index in range(count):
        made = dcmread(file_of(FILES["ct"]))
        made.SOPInstanceUID = generate_uid(entropy_srcs=[str(folder.name), str(index)])
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = uids
        x, y, z = (float(value) for value in source.ImagePositionPatient)
        made.ImagePositionPatient = [f"{value:.4f}" for value in (x, y + tilt * index, z + 5 * index)]
        made.SliceLocation, made.InstanceNumber = f"{z + 5 * index:.4f}", index + 1
        made.RescaleSlope = str(1 + index % 2)  # slices of a PET series, too, have slopes of their own
        made.PixelData = np.roll(source.pixel_array, 3 * index, 0).astype("<i2").tobytes()
        made.save_as(folder / f"{(7 * index) % 11:02d}.dcm")
    return folder


ROW = {
    "target": 1,
    "label_before": 0,
    "label_after": 1,
    "confidence_before": 0.1234567,
    "confidence_after": 0.9876543,
    "flipped": True,
    "unchanged": False,
    "scale": 20.0,
    "iterations": 4,
    "num_function_evaluations": None,
    "out_of_distribution": False,
    "novelty": 1.25e-07,
    "num_seeds": 4,
    "mean_spread": 0.0123,
    "confidence_0": 0.1234567,
    "confidences": [0.1234567, 0.9876543],
    "seconds": 12.5,
}
"""Scores as an explainer gives them."""


def scored(result: CaseResult, **more) -> CaseResult:
    """Give a case scores."""
    return replace(result, row={**result.row, **ROW, **more})


def errors_of(path: Path) -> set[str]:
    """Return the errors that dciodvfy finds in a file, which is older than the attribute SyntheticData."""
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    return {line for line in told.splitlines() if line.startswith("Error") and "(0x0008,0x001c)" not in line}
