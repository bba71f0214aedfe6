# SPDX-License-Identifier: Apache-2.0
"""A picture to judge the counterfactuals by eye: one row per case, for users who have the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.fetal_us.evaluate import Images
from medcf.inferers.counterfactual import Counterfactual

__all__ = ["draw_sheet"]


def draw_sheet(path: Path, images: Images, results: Sequence[Counterfactual], rows: int = 12) -> None:
    """Draw input, every iterate, and the difference of the last, with f's probabilities above.

    Args:
        path: PNG file.
        images: the inputs.
        results: their counterfactuals, in the same order.
        rows: how many of the cases that were not left unchanged.
    """
    trajectory = torch.cat([result.trajectory for result in results])[:, :, 0].cpu()
    confidences = torch.cat([result.confidences for result in results]).cpu()
    chosen = (~torch.cat([result.unchanged for result in results])).nonzero()[:rows, 0].tolist()
    columns = trajectory.shape[1] + 1
    figure = Figure(figsize=(2.1 * columns, 1.9 * max(len(chosen), 1)), layout="constrained")
    axes = figure.subplots(max(len(chosen), 1), columns, squeeze=False)
    for row, index in zip(axes, chosen, strict=False):
        for step, axis in enumerate(row[:-1]):
            axis.imshow(trajectory[index, step], cmap="gray", vmin=-1, vmax=1)
            axis.set_title(f"{'input' if step == 0 else f'pass {step}'}: {confidences[index, step]:.2f}", fontsize=8)
        row[-1].imshow(trajectory[index, -1] - trajectory[index, 0], cmap="RdBu_r", vmin=-1, vmax=1)
        row[-1].set_title(images.case[index][-24:], fontsize=6)
    for axis in axes.flat:
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
