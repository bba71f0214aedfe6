# SPDX-License-Identifier: Apache-2.0
"""How phantoms of fetal planes compare to real ones: gray values, speckle and black borders at 128 x 128 pixels.

``python -m benchmarks.fetal_planes.likeness --data "$DATA/fetal_us"`` measures each class at each site: site A against
the Spanish planes, site B against the African ones. Both are resized to the grid without regard to the aspect ratio, as
training does. There are no real planes of the cervix in that folder, and none of class other from Africa.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, label
from scipy.stats import wasserstein_distance

from benchmarks.chest_xray.likeness import spectral_slope
from medcf.phantoms import PLANE_NAMES, draw_plane

__all__ = ["PROPERTIES", "black_border", "compare", "markdown", "speckle_width", "write"]

Array = NDArray[np.float64]
SIZE = (128, 128)
_BLACK = 0.03  # gray value up to which a pixel is black

#: Which real source a site is compared to.
SOURCES = {"A": "FETAL_PLANES_DB", "B": "AFRICAN_PLANES"}


def black_border(image: Array) -> float:
    """Return the share of black pixels that are connected to the picture's edge: what lies outside the sector.

    Args:
        image: (H, W) gray values in [0, 1].
    """
    parts, _ = label(image <= _BLACK)
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return float(np.isin(parts, edge[edge > 0]).mean())


def speckle_width(image: Array, axis: int) -> float:
    """Return the width in pixels at half maximum of the autocorrelation of the texture in the picture's middle.

    Args:
        image: (H, W) gray values in [0, 1].
        axis: 0 down the picture (mostly along the beams), 1 across it.
    """
    rows, cols = (slice(n // 4, 3 * n // 4) for n in image.shape)
    texture = np.log(image[rows, cols] + _BLACK)
    texture = (texture - gaussian_filter(texture, 3.0)) * np.outer(*(np.hanning(n) for n in texture.shape))
    correlation = np.fft.ifft2(np.abs(np.fft.fft2(texture)) ** 2).real
    line = (correlation[:, 0] if axis == 0 else correlation[0]) / correlation[0, 0]
    first = int(np.argmax(line < 0.5))
    return float(2 * (first - 1 + (line[first - 1] - 0.5) / (line[first - 1] - line[first])))


def _percentile(share: float) -> Callable[[Array], float]:
    return lambda image: float(np.percentile(image, share))


#: What is measured: name to a function of (H, W) gray values in [0, 1].
PROPERTIES: dict[str, Callable[[Array], float]] = {
    "gray value, mean": lambda image: float(image.mean()),
    **{f"gray value, {share} % of the pixels are darker": _percentile(share) for share in (25, 50, 75, 95)},
    "black outside the sector, share": black_border,
    "speckle width down the picture, pixels": lambda image: speckle_width(image, 0),
    "speckle width across the picture, pixels": lambda image: speckle_width(image, 1),
    "texture finer than a pixel": lambda image: float((image - gaussian_filter(image, 1.0)).std()),
    "slope of the power spectrum": spectral_slope,
}


def real(data: Path, name: str, source: str) -> list[Array]:
    """Read the planes of a class and source, averaged onto the grid."""
    plane = "Other" if name == "other" else f"Fetal {name}"
    with (data / "labels.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == source and row["plane"] == plane]
    pictures = (Image.open(data / row["file"]).convert("L").resize(SIZE[::-1], Image.Resampling.BOX) for row in rows)
    return [np.asarray(picture, float) / 255 for picture in pictures]


def phantoms(count: int, name: str, site: str) -> list[Array]:
    """Render one plane of a class of each of several subjects."""
    index = PLANE_NAMES.index(name)
    cases = (draw_plane("demo", number, label=index, site=site, planes=1) for number in range(count))
    return [case.render(size=SIZE).image.astype(float) for case in cases]


def compare(name: str, site: str, groups: dict[str, Sequence[Array]]) -> Iterator[dict[str, Any]]:
    """Measure real planes and phantoms of a class at a site.

    Args:
        name: class.
        site: "A" or "B".
        groups: images under "real" and "phantom"; an empty group is left out.

    Yields:
        One row per property: mean and standard deviation over images of each group; last, the earth mover's distance
        between the gray values of both groups.
    """
    first = {"class": name, "site": site}
    for title, compute in PROPERTIES.items():
        row: dict[str, Any] = {**first, "property": title}
        for group, images in groups.items():
            values = [compute(image) for image in images]
            row[f"{group}_images"] = len(images)
            if values:
                row |= {
                    f"{group}_mean": round(float(np.mean(values)), 4),
                    f"{group}_std": round(float(np.std(values)), 4),
                }
        yield row
    if all(len(images) for images in groups.values()):
        pooled = [np.percentile(np.stack(images), np.linspace(0, 100, 1001)) for images in groups.values()]
        distance = round(float(wasserstein_distance(*pooled)), 4)
        counts = {f"{group}_images": len(images) for group, images in groups.items()}
        yield {**first, "property": "distance between the gray values", **counts, "phantom_mean": distance}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as CSV."""
    fields = ["class", "site", "property"]
    fields += [f"{group}_{what}" for group in ("real", "phantom") for what in ("images", "mean", "std")]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[dict[str, Any]], titles: Sequence[str]) -> str:
    """Return a table of real / phantom means: classes and sites down, some of the properties across."""
    lines = ["| class, site | images | " + " | ".join(titles) + " |", "| --- |" + " --- |" * (len(titles) + 1)]
    for name, site in dict.fromkeys((row["class"], row["site"]) for row in rows):
        found = {row["property"]: row for row in rows if (row["class"], row["site"]) == (name, site)}
        first = next(iter(found.values()))
        cells = [f"{name}, {site}", f"{first['real_images']} / {first['phantom_images']}"]
        for title in titles:
            means = [found.get(title, {}).get(f"{group}_mean") for group in ("real", "phantom")]
            shown = means[1:] if title.startswith("distance") else means
            cells.append(" / ".join("-" if mean is None else f"{mean:.3f}" for mean in shown))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Write the CSV and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetal_planes.likeness", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and images")
    parser.add_argument("--count", type=int, default=60, help="phantoms of each class and site (default 60)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/fetal_planes_likeness.csv"))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for site, source in SOURCES.items():
        for name in PLANE_NAMES:
            groups = {"real": real(options.data, name, source), "phantom": phantoms(options.count, name, site)}
            rows.extend(compare(name, site, groups))
    write(options.out, rows)
    titles = ["gray value, mean", "black outside the sector, share"]
    titles += [title for title in PROPERTIES if title.startswith("speckle")]
    sys.stdout.write(markdown(rows, [*titles, "distance between the gray values"]) + "\n")


if __name__ == "__main__":
    main()
