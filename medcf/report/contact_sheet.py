# SPDX-License-Identifier: Apache-2.0
"""Several cases in one picture: input, counterfactual, difference and, where it is known, the truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from skimage.transform import resize

from medcf.data import UnreadableImage, read_study
from medcf.data.volumes import read_volume
from medcf.inference.case_result import CaseResult
from medcf.inference.drawing import colored_difference
from medcf.inference.run_folder import MARKER
from medcf.inference.volume_panel import focus, slices_through

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SheetColumn", "read_run", "summary_figure"]

_DPI = 100
_FIELD_MM = 200  # side of what is shown of a brain


@dataclass(frozen=True)
class SheetColumn:
    """One case of a contact sheet; all images are (H, W) in [0, 1], the difference is signed.

    Attributes:
        title: text above the column.
        image: the input.
        counterfactual: what the method made of it.
        difference: counterfactual minus input, in fractions of the intensity range.
        truth: the paired image of the target class, None where nobody knows it.
        truth_name: what the truth shows.
    """

    title: str
    image: NDArray[np.floating]
    counterfactual: NDArray[np.floating]
    difference: NDArray[np.floating]
    truth: NDArray[np.floating] | None = None
    truth_name: str = "truth: standard plane\nof the same head"


def read_run(output_dir: str | Path, cases: Sequence[str] | None = None, count: int = 6) -> list[SheetColumn]:
    """Read cases of a finished run from its files; of a volume, the axial slice through its largest difference.

    Args:
        output_dir: folder of the run.
        cases: ids to take, in this order; None takes ``count`` flipped ones, evenly over the run.
        count: number of cases when none are named.

    Returns:
        The columns of a contact sheet, with the truth where the run made phantoms (``demo_truth``).

    Raises:
        ValueError: the folder holds none of these cases.
    """
    folder = Path(output_dir)
    if cases is None:
        with (folder / "scores.csv").open(encoding="utf-8") as file:
            flipped = [row["case"] for row in csv.DictReader(file) if row["flipped"] == "True"]
        chosen = np.linspace(0, len(flipped) - 1, min(count, len(flipped))).round().astype(int)
        cases = [flipped[index] for index in chosen]
    if not cases or not all((folder / case / MARKER).is_file() for case in cases):
        raise ValueError(f"{folder} holds no finished cases of that kind ({', '.join(cases) or 'none flipped'}).")
    return [_column(folder, case) for case in cases]


def summary_figure(columns: Sequence[SheetColumn], *, limit: float = 0.5, tile: int = 200) -> Figure:
    """Draw a contact sheet, a column a case.

    Args:
        columns: the cases.
        limit: difference of full color.
        tile: width of a tile in pixels.

    Returns:
        A figure that belongs to no window; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: there is no case.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not columns:
        raise ValueError("columns is empty: a contact sheet needs at least one case.")
    names = ["input", "counterfactual\n(SYNTHETIC)", f"difference\n(blue -{limit:g}, red +{limit:g})"]
    names += [column.truth_name for column in columns if column.truth is not None][:1]
    height, width = columns[0].image.shape
    tile_height = round(tile * height / width)
    left, head, gap = 175, 24, 4
    size = (left + len(columns) * (tile + gap), head + len(names) * (tile_height + gap))
    canvas = np.ones((size[1], size[0], 3))
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for position, column in enumerate(columns):
        x = left + position * (tile + gap)
        axes.text(x + tile / 2, head / 2, column.title, ha="center", va="center", fontsize=9)
        for line, image in enumerate(_tiles(column, limit)):
            y = head + line * (tile_height + gap)
            if image is not None:
                canvas[y : y + tile_height, x : x + tile] = resize(image, (tile_height, tile), order=1, mode="edge")
    for line, name in enumerate(names):
        y = head + line * (tile_height + gap) + tile_height / 2
        axes.text(left - 8, y, name, ha="right", va="center", fontsize=9)
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, size[0], size[1], 0))
    return figure


def _tiles(column: SheetColumn, limit: float) -> list[NDArray | None]:
    images = (column.image, column.counterfactual, column.truth)
    gray = [None if i is None else np.repeat(np.clip(i, 0, 1)[..., None], 3, axis=2) for i in images]
    return [gray[0], gray[1], colored_difference(column.image, column.difference, limit), gray[2]]


def _column(folder: Path, case: str) -> SheetColumn:
    row = json.loads((folder / case / MARKER).read_text(encoding="utf-8"))
    if "size_k" in row:
        return _volume_column(folder, case, row)
    original = read_study(row["file"], row["frame"])
    images = {}
    for name in ("counterfactual", "difference"):
        image = cast(nib.Nifti1Image, nib.load(folder / case / f"{name}.nii.gz"))
        images[name] = _as_picture(image, original.affine.numpy(), tuple(original.shape[1:]))
    truth = folder / "demo_truth" / f"{case}_standard.png"
    return SheetColumn(
        title=f"{row['confidence_before']:.2f} → {row['confidence_after']:.2f}",
        image=original[0].numpy(),
        counterfactual=images["counterfactual"],
        difference=images["difference"],
        truth=read_study(truth)[0].numpy() if truth.is_file() else None,
    )


def _volume_column(folder: Path, case: str, row: Mapping[str, Any]) -> SheetColumn:
    paths = {name: folder / case / f"{name}.nii.gz" for name in ("counterfactual", "difference", "mask")}
    paths["truth"] = folder / "demo_truth" / f"{case}_other.nii.gz"
    shape = tuple(row[f"size_{axis}"] for axis in "ijk")
    stored = {name: cast(nib.Nifti1Image, nib.load(path)) for name, path in paths.items() if path.is_file()}
    images = {name: image.get_fdata(dtype=np.float32).reshape(shape) for name, image in stored.items()}
    window = row["black"], row["white"]
    original = _input_volume(row, shape)
    if original is None:  # exact but for voxels that were cut off at black
        original = images["counterfactual"] - images["difference"] * (window[1] - window[0])
    result = CaseResult(
        case=case,
        path=Path(row["file"]),
        original=original,
        counterfactual=images["counterfactual"],
        difference=images["difference"],
        trajectory=original[None],
        affine=stored["difference"].affine,
        source_format="nifti",
        window=window,
        mask=images["mask"] > 0.5 if "mask" in images else None,
    )
    axial = slices_through(result, focus(result))[0]
    truth = None
    if "truth" in images:
        shown = replace(result, counterfactual=images["truth"])
        truth = _field_of_view(slices_through(shown, focus(result))[0].counterfactual, axial.size_mm)
    return SheetColumn(
        title=f"{row['confidence_before']:.2f} → {row['confidence_after']:.2f}",
        image=_field_of_view(axial.image, axial.size_mm),
        counterfactual=_field_of_view(axial.counterfactual, axial.size_mm),
        difference=_field_of_view(axial.difference, axial.size_mm),
        truth=truth,
        truth_name="truth: the same brain\nin the other class",
    )


def _input_volume(row: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray | None:
    """Read the input of a case again; None if it is gone, or a series whose folder holds others, too."""
    path = Path(row["file"])
    try:
        volume = read_volume(path.parent if row["format"] == "dicom" else path)
    except UnreadableImage:
        return None
    return volume.numpy()[0] if tuple(volume.shape[1:]) == shape else None


def _field_of_view(picture: NDArray, size_mm: tuple[float, float]) -> NDArray:
    """Put a slice into the middle of a square, at a pixel a mm."""
    picture = resize(picture, tuple(max(round(mm), 1) for mm in size_mm), order=1)
    return np.asarray(ResizeWithPadOrCrop(_FIELD_MM, value=0)(torch.from_numpy(picture)[None]))[0]


def _as_picture(image: nib.Nifti1Image, affine: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Turn a case's NIfTI back to rows and columns as on a screen."""
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    array = image.get_fdata(dtype=np.float32)
    array = array.reshape(array.shape[:3] + (1,) * (3 - array.ndim))
    turn = ornt_transform(io_orientation(image.affine), io_orientation(affine))
    return apply_orientation(array, turn).reshape(shape)
