# SPDX-License-Identifier: Apache-2.0
"""DICOM objects of every readable image of a folder: ``python -m benchmarks.dicom_objects --data FOLDER``.

No network runs: each image gets a planted change in its middle, all objects of the DICOM writer are made of it, and
others judge them: dicom3tools' validators (errors that the source has not), pydicom, highdicom, ITK and dcmtk (do they
read the same pixels?), and the planted change must come back where it was planted.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom import dcmread

import medcf
from medcf.data import Case, find_cases, to_luminance
from medcf.dicom import DicomWriter
from medcf.inference.case_result import CaseResult

__all__ = ["main"]

_NEWER = "(0x0008,0x001c)"  # SyntheticData: the validator is older
_PLANTED = 0.3  # fraction of the range


@dataclass
class Findings:
    """What the checks found."""

    cases: int = 0
    objects: int = 0
    unread: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> None:
    """Make the objects, let others judge them, and print what they say; exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dicom_objects", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of DICOM files")
    parser.add_argument("--out", type=Path, help="keep the objects here")
    options = parser.parse_args(arguments)
    missing = [name for name in ("dciodvfy", "dcentvfy", "dcmdump") if shutil.which(name) is None]
    if missing:
        parser.exit(2, f"{', '.join(missing)} not found: install dicom3tools and dcmtk.\n")
    with tempfile.TemporaryDirectory() as folder:
        found = Findings()
        for dims in (2, 3):
            cases, _ = find_cases(options.data, spatial_dims=dims)
            for case in cases:
                _judge(case, (options.out or Path(folder)) / f"{dims}d" / case.id, found)
    _print(found)
    raise SystemExit(bool(found.errors))


def _judge(case: Case, folder: Path, found: Findings) -> None:
    try:
        result = _planted(case)
    except Exception as error:
        found.unread.append(f"{case.path.name}: {type(error).__name__}")
        return
    started = time.perf_counter()
    DicomWriter({"config": {"case": case.id}}, class_names=("one", "other"), banner=False)(result, folder)
    found.seconds += [time.perf_counter() - started] if result.original.ndim == 2 else []
    found.cases += 1
    before = set().union(*(_errors(file) for file in case.files))
    uids = [str(dcmread(file, force=True, stop_before_pixels=True).get("SOPInstanceUID", "")) for file in case.files]
    for path in sorted((folder / "dicom").rglob("*.dcm")):
        found.objects += 1
        new = {line for line in _errors(path) - before if not any(len(uid) > 8 and uid in line for uid in uids)}
        found.errors += [f"{case.path.name}: {path.name}: {line}" for line in sorted(new)]
        _read_back(path, found, case)
    _check_change(result, folder / "dicom", found)
    _check_study(sorted((folder / "dicom").rglob("*.dcm")), list(case.files), found)


def _planted(case: Case) -> CaseResult:
    """Read a case and brighten the middle, without a network."""
    image = medcf.read(case)
    original = to_luminance(image).as_subclass(torch.Tensor).numpy()[0].astype(np.float32)
    low, high = (0.0, 1.0) if original.ndim == 2 else (float(original.min()), float(original.max()))
    box = tuple(slice(size // 2, size // 2 + max(size // 8, 1)) for size in original.shape)
    counterfactual = original.copy()
    counterfactual[box] = np.clip(counterfactual[box] + _PLANTED * (high - low), low, high)
    return CaseResult(
        case=case.id,
        path=case.path,
        files=case.files,
        original=original,
        counterfactual=counterfactual,
        difference=((counterfactual - original) / max(high - low, 1e-9)).astype(np.float32),
        trajectory=None,
        affine=np.asarray(image.affine),
        source_format=image.meta["source_format"],
        window=(low, high),
        row={"target": 1, "frame": image.meta["frame"], "flipped": True, "file": str(case.path)},
        on_grid={"image": image},
    )


def _errors(path: Path) -> set[str]:
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, errors="replace").stderr
    return {line for line in told.splitlines() if line.startswith("Error") and _NEWER not in line}


def _read_back(path: Path, found: Findings, case: Case) -> None:
    """Let pydicom, highdicom, ITK and dcmtk open an object."""
    import highdicom
    import SimpleITK

    made = dcmread(path)
    readers: dict[str, Any] = {
        "pydicom": lambda: made.pixel_array if "PixelData" in made else made.SOPClassUID,
        "dcmtk": lambda: subprocess.run(["dcmdump", "-q", str(path)], check=True, capture_output=True),
    }
    if "PixelData" in made or "FloatPixelData" in made:
        readers["highdicom"] = lambda: highdicom.imread(path)
    if "PixelData" in made and made.get("Modality") != "SEG":
        readers["ITK"] = lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    for name, read in readers.items():
        try:
            read()
            found.read[name] += 1
        except Exception as error:
            if name != "ITK" or _itk_reads(case.path):  # ITK refuses 7 bits in 8, in the source, too
                found.errors.append(f"{case.path.name}: {path.name}: {name} fails: {str(error).splitlines()[-1][:120]}")


def _itk_reads(path: Path) -> bool:
    import SimpleITK

    try:
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError:
        return False
    return True


def _check_change(result: CaseResult, folder: Path, found: Findings) -> None:
    """Read the counterfactual again: the planted change must be where it was planted, and nowhere else."""
    files = sorted(folder.glob("counterfactual*.dcm"))
    again = medcf.read(files if len(files) > 1 else files[0])
    values = to_luminance(again).as_subclass(torch.Tensor).numpy()[0]
    changed = np.abs(values - result.original) > 0.1 * (result.window[1] - result.window[0])
    planted = np.abs(result.counterfactual - result.original) > 0.1 * (result.window[1] - result.window[0])
    affine = result.original.ndim != 3 or np.allclose(again.affine, result.affine, atol=1e-3)
    if values.shape != result.original.shape or not affine or (changed != planted).mean() > 0.001:
        found.errors.append(f"{result.path.name}: the planted change does not come back where it was")


def _check_study(made: list[Path], sources: list[Path], found: Findings) -> None:
    """Let dcentvfy compare patient, study and frame of reference of a study's objects."""
    new = _of_entities([*sources, *made]) - _of_entities(sources)
    found.errors += [f"{sources[0].name}: dcentvfy: {line}" for line in sorted(new)]


def _of_entities(files: list[Path]) -> set[str]:
    told = subprocess.run(["dcentvfy", *map(str, files)], capture_output=True, text=True, check=False, errors="replace")
    return {line for line in told.stderr.splitlines() if line.startswith("Error")}


def _times(seconds: list[float]) -> str:
    if not seconds:
        return "\n"
    return f"; {np.mean(seconds):.2f} s a 2D case (median {np.median(seconds):.2f}, slowest {max(seconds):.2f})\n"


def _print(found: Findings) -> None:
    sys.stdout.write(
        f"{found.cases} images, {found.objects} objects; read again by "
        + ", ".join(f"{name} {count}" for name, count in sorted(found.read.items()))
        + _times(found.seconds)
    )
    sys.stdout.write(f"not readable, and so without objects: {', '.join(found.unread) or 'none'}\n")
    sys.stdout.write(f"{len(found.errors)} errors that the source has not\n")
    sys.stdout.writelines(f"  {line[:300]}\n" for line in found.errors)


if __name__ == "__main__":
    main()
