# SPDX-License-Identifier: Apache-2.0
"""The bundle's own command on files, case by case: what became of each, and whether the results lie where it lies."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image

from benchmarks.command_line import bundle_command

__all__ = ["COLUMNS", "VOLUMES", "in_own_geometry", "markdown", "run_bundle", "write_cases"]

COLUMNS = ("images", "weights", "case", "pixels", "mm", "outcome", "P(normal)", "out of distribution", "own geometry")
VOLUMES = ("original", "counterfactual", "difference", "attribution", "organ")
#: Correlation with the stored pixels, either way round, above which an image is the file's own: a display window and
#: the removal of a letter lower it, a turned image has less.
ALIKE = 0.8


def stored(file: Path) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Read pixels (rows, columns), and their spacing in mm (row, column), 1 where unknown, without medcf."""
    if file.suffix.lower() in (".jpeg", ".jpg", ".png"):
        return np.asarray(Image.open(file).convert("L"), float), (1.0, 1.0)
    data = pydicom.dcmread(file)
    spacing = data.get("PixelSpacing") or data.get("ImagerPixelSpacing") or (1.0, 1.0)
    return np.asarray(data.pixel_array, float), (float(spacing[0]), float(spacing[1]))


def in_own_geometry(file: Path, folder: Path) -> bool:
    """Tell whether all results of a case lie on the pixels of its file, and add up.

    Each must have as many columns and rows of the same spacing, the cleaned original must show the file's picture, and
    the counterfactual must be the cleaned original plus the difference, within the range of gray values.

    Args:
        file: DICOM, JPEG or PNG of one picture.
        folder: the case's results.
    """
    pixels, spacing = stored(file)
    images = {name: nib.load(folder / f"{name}.nii.gz") for name in VOLUMES}  # type: ignore[attr-defined]
    for image in images.values():
        steps = np.abs(np.diag(image.affine))[:2]
        if image.shape[:2] != pixels.shape[::-1] or not np.allclose(steps, spacing[::-1], rtol=1e-3):
            return False
    values = {name: np.asarray(image.dataobj, float).squeeze() for name, image in images.items()}
    if values["original"].std() == 0 or pixels.std() == 0:
        return False
    like = abs(np.corrcoef(values["original"].ravel(), pixels.T.ravel())[0, 1])
    made = np.clip(values["original"] + values["difference"], 0, 1)  # gray values are fractions of the full range
    return bool(like > ALIKE and np.allclose(values["counterfactual"], made, atol=1e-3))


def run_bundle(images: str, weights: str, ids: Mapping[str, Any], out: Path, threads: int = 1) -> list[dict[str, str]]:
    """Run the bundle's default command and tell what became of each file.

    Args:
        images: what they are called.
        weights: what the weights are called.
        ids: ids of the config, ``dataset_dir`` or ``datalist`` among them.
        out: folder of the results, which replace those of an earlier run.
        threads: threads on a CPU.

    Returns:
        One row a case, by ``COLUMNS``.

    Raises:
        subprocess.CalledProcessError: the job as a whole failed; its message is on stderr.
    """
    line = bundle_command("valdmd", ("inference.json",), {**ids, "output_dir": out, "overwrite": True})
    subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    common = {"images": images, "weights": weights}
    rows = [common | _done(row, out / row["case"]) for row in _read(out / "scores.csv")]
    for row in _read(out / "failures.csv"):
        told = f"refused: {row['reason']}"
        rows.append({column: "" for column in COLUMNS} | common | {"case": Path(row["file"]).name, "outcome": told})
    return rows


def _done(row: Mapping[str, str], folder: Path) -> dict[str, str]:
    outcome = "f says normal already: unchanged"
    if row["unchanged"] != "True":
        outcome = "normal" if row["flipped"] == "True" else "not normal"
        outcome += ", change below the floor" * (row["below_floor"] == "True")
    before, after = (float(row[f"confidence_{when}"]) for when in ("before", "after"))
    spacing = [row[f"spacing_{axis}_mm"] for axis in ("row", "column")]
    return {
        "case": row["case"],
        "pixels": f"{row['rows']} x {row['columns']}",
        "mm": " x ".join(f"{float(each):g}" for each in spacing) if all(spacing) else "unknown",
        "outcome": outcome,
        "P(normal)": f"{before:.2f} to {after:.2f}",
        "out of distribution": "yes" if row["out_of_distribution"] == "True" else "no",
        "own geometry": "yes" if in_own_geometry(Path(row["file"]), folder) else "NO",
    }


def _read(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_cases(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the rows as a table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
