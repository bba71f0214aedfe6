# SPDX-License-Identifier: Apache-2.0
"""Several cases in one picture: input, counterfactual, difference and, if known, the truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from skimage.transform import resize

from medcf.data import read, to_luminance
from medcf.data.image import geometry
from medcf.inference.case_result import MARKER, CaseResult
from medcf.inference.drawing import Canvas, colored_difference, gray
from medcf.inference.slices import focus, slices_through
from medcf.runtime.errors import UnreadableImage

__all__ = ["SheetColumn", "read_run", "summary_figure"]

_FIELD_MM = 200  # side of the area shown for a brain


@dataclass(frozen=True)
class SheetColumn:
    """One case of a contact sheet; all images are (H, W) in [0, 1], the difference is signed.

    Attributes:
        title: text above the column.
        image: the input.
        counterfactual: the method's result.
        difference: counterfactual minus input, in fractions of the intensity range.
        truth: the paired image of the target class; None if unknown.
        truth_name: what the truth shows.
    """

    title: str
    image: NDArray[np.floating]
    counterfactual: NDArray[np.floating]
    difference: NDArray[np.floating]
    truth: NDArray[np.floating] | None = None
    truth_name: str = "truth: standard plane\nof the same head"


def read_run(output_dir: str | Path, cases: Sequence[str] | None = None, count: int = 6) -> list[SheetColumn]:
    """Read cases of a finished run from its files; for a volume, the axial slice through its largest difference.

    Args:
        output_dir: folder of the run.
        cases: ids to show, in this order; None selects ``count`` flipped ones, spread evenly over the run.
        count: number of cases if none are named.

    Returns:
        The columns of a contact sheet, with the truth if the run wrote phantoms (``demo_truth``).

    Raises:
        ValueError: if the folder holds none of these cases.
    """
    folder = Path(output_dir)
    if cases is None:
        with (folder / "scores.csv").open(encoding="utf-8") as file:
            flipped = [row["case"] for row in csv.DictReader(file) if row["flipped"] == "True"]
        chosen = np.linspace(0, len(flipped) - 1, min(count, len(flipped))).round().astype(int)
        cases = [flipped[index] for index in chosen]
    if not cases or not all((folder / case / MARKER).is_file() for case in cases):
        named = f"not all of {', '.join(cases)} are finished in" if cases else "no case is flipped in"
        raise ValueError(f"{named} {folder}: name finished ones with --cases.")
    return [_column(folder, case) for case in cases]


def summary_figure(columns: Sequence[SheetColumn], *, limit: float = 0.5, tile: int = 200) -> Canvas:
    """Draw a contact sheet with one column per case.

    Args:
        columns: the cases.
        limit: difference at full color.
        tile: width of a tile in pixels.

    Returns:
        The sheet; ``sheet.save(path)`` writes it.

    Raises:
        ValueError: if there are no cases.
    """
    if not columns:
        raise ValueError("columns is empty: a contact sheet needs at least one case.")
    names = ["input", "counterfactual\n(SYNTHETIC)", f"difference\n(blue -{limit:g}, red +{limit:g})"]
    names += [column.truth_name for column in columns if column.truth is not None][:1]
    height, width = columns[0].image.shape
    tile_height = round(tile * height / width)
    left, head, gap = 175, 24, 4
    canvas = Canvas(head + len(names) * (tile_height + gap), left + len(columns) * (tile + gap), "white")
    for position, column in enumerate(columns):
        x = left + position * (tile + gap)
        canvas.text(x + tile / 2, head / 2, column.title, width=tile, color="black")
        for line, image in enumerate(_tiles(column, limit)):
            if image is not None:
                canvas.paste(image, head + line * (tile_height + gap), x, tile_height, tile)
    for line, name in enumerate(names):
        y = head + line * (tile_height + gap) + tile_height / 2
        words = name.split("\n")
        for number, each in enumerate(words):
            row = y + 16 * (number - (len(words) - 1) / 2)
            canvas.text(left - 8, row, each, width=left - 12, anchor="rm", color="black")
    return canvas


def _tiles(column: SheetColumn, limit: float) -> list[NDArray | None]:
    images = (column.image, column.counterfactual, column.truth)
    plain = [None if image is None else gray(image) for image in images]
    return [plain[0], plain[1], colored_difference(column.image, column.difference, limit), plain[2]]


def _column(folder: Path, case: str) -> SheetColumn:
    row = json.loads((folder / case / MARKER).read_text(encoding="utf-8"))
    result = _read_result(folder / case, row)
    shown = slices_through(result, focus(result))[0]
    picture = result.original.ndim == 2
    images = {"image": shown.image, "counterfactual": shown.counterfactual, "difference": shown.difference}
    truth = folder / "demo_truth" / (f"{case}_standard.png" if picture else f"{case}_other.nii.gz")
    if truth.is_file():
        low, high = result.window
        images["truth"] = np.clip((shown.cut(read(truth).numpy()[0]) - low) / (high - low), 0, 1)
    if not picture:
        images = {name: _field_of_view(image, shown.size_mm) for name, image in images.items()}
    return SheetColumn(
        title=f"{row['confidence_before']:.2f} → {row['confidence_after']:.2f}",
        truth_name="truth: standard plane\nof the same head"
        if picture
        else "truth: the same brain\nin the other class",
        **images,
    )


def _read_result(folder: Path, row: Mapping[str, Any]) -> CaseResult:
    """Read a case back from its files."""
    paths = {name: folder / f"{name}.nii.gz" for name in ("counterfactual", "difference", "mask", "trajectory")}
    stored = {name: cast(nib.Nifti1Image, nib.load(path)) for name, path in paths.items() if path.is_file()}
    window = (row.get("black", 0.0), row.get("white", 1.0))
    images = {name: np.squeeze(image.get_fdata(dtype=np.float32)) for name, image in stored.items()}
    # the input is the counterfactual minus the difference, exact except where black and white were clipped
    original = images["counterfactual"] - images["difference"] * (window[1] - window[0])
    source = _input(row, original.shape)
    if original.ndim == 2 and "trajectory" in images:  # cleaned of burned-in overlays
        cleaned = images["trajectory"].reshape(*original.shape, -1)[..., 0]
        source = (cleaned, stored["difference"].affine if source is None else source[1])
    return CaseResult(
        case=str(row["case"]),
        path=Path(row["file"]),
        original=original if source is None else source[0],
        counterfactual=images["counterfactual"],
        difference=images["difference"],
        trajectory=None,
        affine=stored["difference"].affine if source is None else source[1],
        source_format="nifti",
        window=window,
        mask=images["mask"] > 0.5 if "mask" in images else None,
    )


def _input(row: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[NDArray, NDArray] | None:
    """Read a case's input again, with its geometry; None if it is gone, or a series whose folder holds others."""
    path = Path(row["file"])
    series = row["format"] == "dicom" and len(shape) == 3
    try:
        image = read(path.parent if series else path, row.get("frame"))
    except UnreadableImage:
        return None
    plain = to_luminance(image).numpy()[0]
    return (plain, geometry(image)[0]) if plain.shape == shape else None


def _field_of_view(picture: NDArray, size_mm: tuple[float, float]) -> NDArray:
    """Center a slice in a square, at one pixel per mm."""
    picture = resize(picture, tuple(max(round(mm), 1) for mm in size_mm), order=1)
    return np.asarray(ResizeWithPadOrCrop(_FIELD_MM, value=0)(torch.from_numpy(picture)[None]))[0]
