# SPDX-License-Identifier: Apache-2.0
"""Picture of chest phantoms: three subjects in every state.

``python -m benchmarks.chest_xray.figure --out docs/images/chest_xray.png``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.counterfactual.figure import plt, save
from medcf.phantoms import ChestState, ChestXray

__all__ = ["draw", "main"]

#: Subjects and their devices: an adult, a child, an adult with a pacemaker.
SUBJECTS = ((9, None), (8, None), (6, "pacemaker"))
STATES = {
    "normal": ChestState(),
    "large opacity in the\nleft lower lobe": ChestState("lung_opacity", "left", "lower", 0.8, 0.9),
    "small opacity in the\nright upper lobe": ChestState("lung_opacity", "right", "upper", 0.2, 0.9),
    "severe covid-19\npneumonia": ChestState("covid", extent=0.7, severity=0.8),
    "severe viral\npneumonia": ChestState("viral_pneumonia", extent=0.7, severity=0.9),
}


def draw(path: Path) -> None:
    """Draw one row per subject and one column per state; the patient's right is at the left.

    Args:
        path: PNG to write.
    """
    size = (1.3 * len(STATES), 1.45 * len(SUBJECTS))
    figure, axes = plt.subplots(len(SUBJECTS), len(STATES), figsize=size, layout="constrained")
    for axis, name in zip(axes[0], STATES, strict=True):
        axis.set_title(name, fontsize=7)
    for (seed, device), line in zip(SUBJECTS, axes, strict=True):
        subject = ChestXray(seed)
        for state, axis in zip(STATES.values(), line, strict=True):
            image = subject.render(state, size=(128, 128), device=device).image  # type: ignore[arg-type]
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_axis_off()
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chest_xray.figure", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/chest_xray.png"), help="PNG to write")
    draw(parser.parse_args(arguments).out)


if __name__ == "__main__":
    main()
