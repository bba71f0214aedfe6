# SPDX-License-Identifier: Apache-2.0
"""Picture of fetal-plane phantoms: the six classes as both sites show them.

``python -m benchmarks.fetal_planes.figure --out docs/images/fetal_planes.png``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.counterfactual.figure import plt, save
from medcf.phantoms import PLANE_NAMES, draw_plane

__all__ = ["draw", "main"]

#: Rows: site of the scanner, site whose section is shown (None for the scanner's own).
ROWS = {"site A": ("A", None), "site B": ("B", None), "site B's scanner,\nsection of A": ("B", "A")}


def draw(path: Path, first: int = 0) -> None:
    """Draw one column per class, the same subject and plane in each row.

    Args:
        path: PNG to write.
        first: number of the first case.
    """
    size = (1.3 * len(PLANE_NAMES) + 0.6, 1.35 * len(ROWS) + 0.2)
    figure, axes = plt.subplots(len(ROWS), len(PLANE_NAMES), figsize=size, layout="constrained")
    for label, name in enumerate(PLANE_NAMES):
        case = draw_plane("demo", first + label, label=label, site="A", planes=1)
        axes[0, label].set_title(name, fontsize=8)
        for axis, (title, (site, frame)) in zip(axes[:, label], ROWS.items(), strict=True):
            image = case.render(site=site, frame=frame, size=(128, 128)).image
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if label == 0:
                axis.set_ylabel(title, fontsize=7)
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetal_planes.figure", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/fetal_planes.png"), help="PNG to write")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    options = parser.parse_args(arguments)
    draw(options.out, options.first)


if __name__ == "__main__":
    main()
