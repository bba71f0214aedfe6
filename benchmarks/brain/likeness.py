# SPDX-License-Identifier: Apache-2.0
"""How brain phantoms compare to real skull-stripped volumes: gray values, size, texture, deep fluid.

``python -m benchmarks.brain.likeness --data "$DATA/brain_mri/t1_wholebrain"``
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from benchmarks.counterfactual.tables import insert
from medcf.data import Grid, read
from medcf.phantoms import BrainMRI, BrainState, draw_brain

__all__ = ["PROPERTIES", "compare", "deep_csf_fraction", "markdown", "measure", "spectral_slope"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

GRID, SPACING = (80, 96, 80), 2.0
EROSION = 16.0  # mm from the surface of the brain: deeper than the sulci
WAVELENGTHS = (6.0, 40.0)  # mm, between which the spectrum is fitted
TEXTURE = 2.0  # mm, standard deviation of the smoothing that texture is measured against


def deep_csf_fraction(image: Array, mask: NDArray[np.bool_], spacing: float) -> float:
    """Share of voxels darker than half the median of the brain, deeper than 16 mm: a rough size of the ventricles.

    Args:
        image: (X, Y, Z) gray values, 0 black.
        mask: the brain; holes are filled.
        spacing: mm.
    """
    filled = ndimage.binary_fill_holes(mask)
    deep = ndimage.binary_erosion(filled, iterations=max(round(EROSION / spacing), 1))
    return float((image[deep] < 0.5 * np.median(image[mask])).mean()) if deep.any() else float("nan")


def spectral_slope(image: Array, mask: NDArray[np.bool_], spacing: float) -> float:
    """Slope of log power against log frequency between wavelengths of 40 and 6 mm.

    Args:
        image: (X, Y, Z) gray values.
        mask: the brain. Its mean is subtracted and its edge smoothed, so that the outline does not decide.
        spacing: mm.
    """
    window = ndimage.gaussian_filter(mask.astype(float), 4.0 / spacing)
    power = np.abs(np.fft.fftn((image - image[mask].mean()) * window * mask)) ** 2
    frequency = np.sqrt(
        sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n, spacing) for n in image.shape), indexing="ij"))
    )
    edges = np.geomspace(1 / WAVELENGTHS[1], 1 / WAVELENGTHS[0], 13)
    shells = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    centers = np.sqrt(edges[:-1] * edges[1:])
    levels = np.array([power[shell].mean() for shell in shells])
    return float(np.polyfit(np.log(centers), np.log(levels), 1)[0])


def _percentile(q: float) -> Callable[[Array, NDArray[np.bool_]], float]:
    return lambda image, mask: float(np.percentile(image[mask], q))


def _texture(image: Array, mask: NDArray[np.bool_]) -> float:
    """Standard deviation of what a smoothing by 2 mm removes, 6 mm inside of the brain."""
    inner = ndimage.binary_erosion(mask, iterations=3)
    return float((image - ndimage.gaussian_filter(image, TEXTURE / SPACING))[inner].std())


def _edges(image: Array, mask: NDArray[np.bool_]) -> float:
    """Mean gradient per mm, 6 mm inside of the brain."""
    inner = ndimage.binary_erosion(mask, iterations=3)
    return float(np.sqrt(sum(g**2 for g in np.gradient(image, SPACING)))[inner].mean())


#: What is measured: name to a function of gray values in [0, 1] and the brain.
PROPERTIES: dict[str, Callable[[Array, NDArray[np.bool_]], float]] = {
    "brain, ml": lambda image, mask: float(mask.sum()) * SPACING**3 / 1000,
    **{f"gray value, {q} % of the brain are darker": _percentile(q) for q in (5, 25, 50, 75, 95)},
    "gray values, standard deviation": lambda image, mask: float(image[mask].std()),
    "deep fluid, % of the inner brain": lambda image, mask: 100 * deep_csf_fraction(image, mask, SPACING),
    "slope of the power spectrum, 40 to 6 mm": lambda image, mask: spectral_slope(image, mask, SPACING),
    "texture finer than 2 mm": _texture,
    "mean gradient per mm": _edges,
}


def measure(volumes: Iterable[MetaTensor]) -> dict[str, Array]:
    """Measure volumes on the paper's grid (80 x 96 x 80 at 2 mm), real ones and phantoms by the same way.

    Args:
        volumes: skull-stripped, (1, X, Y, Z) with an affine.

    Returns:
        One value a volume by the names of `PROPERTIES`.
    """
    spec = Grid(GRID, SPACING, "RAS", "auto")
    rows = []
    for volume in volumes:
        grid = spec.to(volume, spec.fit(volume))
        image = (grid.numpy()[0].astype(float) + 1) / 2
        mask = ndimage.binary_fill_holes(image > 0)
        rows.append([compute(image, mask) for compute in PROPERTIES.values()])
    return dict(zip(PROPERTIES, np.array(rows).T, strict=True))


def phantoms(count: int, split: str = "demo", severity: float | None = None) -> Iterable[MetaTensor]:
    """Render phantoms, whole, as a skull-stripped file would hold them.

    Args:
        count: number of subjects, each in its own state.
        split: whose subjects.
        severity: of all; None takes what the subject drew.
    """
    for index in range(count):
        subject, state, _ = draw_brain(split, index)
        yield _rendered(subject, state if severity is None else BrainState(severity))


def compare(groups: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of every property (rows) in every group (columns)."""
    return {
        name: {group: (float(np.mean(found[name])), float(np.std(found[name]))) for group, found in groups.items()}
        for name in PROPERTIES
    }


def markdown(groups: Mapping[str, Mapping[str, Array]]) -> str:
    """Lay the comparison out as a table: mean (standard deviation) by group."""
    lines = ["| | " + " | ".join(groups) + " |", "| --- |" + " --- |" * len(groups)]
    for name, columns in compare(groups).items():
        digits = 0 if name.endswith("ml") else 2 if max(abs(mean) for mean, _ in columns.values()) > 1 else 3
        cells = [f"{mean:.{digits}f} ({spread:.{digits}f})" for mean, spread in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print."""
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brain.likeness", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/*.nii.gz, skull-stripped")
    parser.add_argument("--count", type=int, default=24, help="number of phantoms per column (default 24)")
    parser.add_argument("--page", type=Path, help="also write the table between the markers 'likeness' of this page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files = sorted((options.data / "images").glob("*.nii*"))
    if not files:
        parser.error(f"{options.data / 'images'} holds no NIfTI file")
    columns: dict[str, tuple[Iterable[MetaTensor], int]] = {
        f"{len(files)} real volumes": ((read(path) for path in files), len(files)),
        f"{options.count} phantoms, CN (severity 0.15)": (phantoms(options.count, severity=0.15), options.count),
        f"{options.count} phantoms, AD (severity 0.8)": (phantoms(options.count, severity=0.8), options.count),
    }
    groups = {name: measure(tqdm(volumes, name, total)) for name, (volumes, total) in columns.items()}
    table = markdown(groups)
    if options.page is not None:
        insert(options.page, "likeness", table)
    sys.stdout.write(table)


def _rendered(subject: BrainMRI, state: BrainState) -> MetaTensor:
    sample = subject.render(state, size=GRID, spacing=SPACING)
    return MetaTensor(torch.from_numpy(sample.image)[None], affine=torch.from_numpy(sample.affine))


if __name__ == "__main__":
    main()
