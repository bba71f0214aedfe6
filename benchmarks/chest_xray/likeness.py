# SPDX-License-Identifier: Apache-2.0
"""How chest phantoms compare to real radiographs: gray values, edges, spectrum and profiles at 64 x 64 pixels.

``python -m benchmarks.chest_xray.likeness --data "$DATA/cxr_pneumonia"``
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from medcf.phantoms import draw_chest

__all__ = ["PROPERTIES", "markdown", "measure", "spectral_slope"]

Array = NDArray[np.float64]
SIZE = (64, 64)


def spectral_slope(image: Array) -> float:
    """Slope of log power against log frequency, from 3 to 24 periods across the image, in a Hann window.

    Args:
        image: (H, W) gray values, at least 48 pixels per side.
    """
    window = np.outer(*(np.hanning(n) for n in image.shape))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    rows, cols = (np.fft.fftfreq(n) * n for n in image.shape)
    periods = np.hypot(rows[:, None], cols[None, :])
    centers = np.arange(3, 25)
    levels = [power[np.abs(periods - center) < 0.5].mean() for center in centers]
    return float(np.polyfit(np.log(centers), np.log(levels), 1)[0])


def _percentile(share: float) -> Callable[[Array], float]:
    return lambda image: float(np.percentile(image, share))


#: What is measured: name to a function of (H, W) gray values in [0, 1].
PROPERTIES: dict[str, Callable[[Array], float]] = {
    "gray value, mean": lambda image: float(image.mean()),
    "gray values, standard deviation": lambda image: float(image.std()),
    **{f"gray value, {share} % of the pixels are darker": _percentile(share) for share in (5, 25, 50, 75, 95)},
    "mean gray value of the uppermost eighth": lambda image: float(image[: len(image) // 8].mean()),
    "mean gradient per pixel": lambda image: float(np.hypot(*np.gradient(image)).mean()),
    "texture finer than a pixel": lambda image: float((image - gaussian_filter(image, 1.0)).std()),
    "slope of the power spectrum": spectral_slope,
}


def measure(images: Iterable[Array]) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of every property."""
    rows = np.array([[compute(image) for compute in PROPERTIES.values()] for image in images])
    return {name: (float(row.mean()), float(row.std())) for name, row in zip(PROPERTIES, rows.T, strict=True)}


def real(data: Path, label: str) -> list[Array]:
    """Read the radiographs with a label ("normal" or "pneumonia") in ``labels.csv``, averaged onto the grid."""
    with (data / "labels.csv").open(encoding="utf-8") as stream:
        files = [row["file"] for row in csv.DictReader(stream) if row["label"] == label]
    pictures = (Image.open(data / file).convert("L").resize(SIZE[::-1], Image.Resampling.BOX) for file in files)
    return [np.asarray(picture, float) / 255 for picture in pictures]


def phantoms(count: int, *, sick: bool, child: bool) -> list[Array]:
    """Render normal or sick phantoms of an age group."""
    images: list[Array] = []
    for index in range(50 * count):
        case = draw_chest("demo", index, label=1 + index % 3 if sick else 0, confounded=False)
        if (case.subject.age_group == "child") == child:
            images.append(case.render(size=SIZE).image.astype(float))
        if len(images) == count:
            break
    return images


def markdown(groups: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Return a table of mean (standard deviation), properties down and groups across."""
    lines = ["| | " + " | ".join(groups) + " |", "| --- |" + " --- |" * len(groups)]
    for name in PROPERTIES:
        cells = (f"{found[name][0]:.3f} ({found[name][1]:.3f})" for found in groups.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chest_xray.likeness", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and images")
    parser.add_argument("--count", type=int, default=60, help="phantoms in each group (default 60)")
    options = parser.parse_args(arguments)
    groups: dict[str, list[Array]] = {f"real, {label}": real(options.data, label) for label in ("normal", "pneumonia")}
    for child in (True, False):
        for sick in (False, True):
            name = f"phantom {'children' if child else 'adults'}, {'sick' if sick else 'normal'}"
            groups[name] = phantoms(options.count, sick=sick, child=child)
    table = {f"{len(images)} {name}": measure(images) for name, images in groups.items()}
    sys.stdout.write(markdown(table) + "\n")


if __name__ == "__main__":
    main()
