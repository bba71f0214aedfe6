# SPDX-License-Identifier: Apache-2.0
"""Where a change lies: on which side, in which lobe, how large, in one piece or several.

Sides are the patient's: label 1 of the lungs, the right one, is on the left of the picture. Shares are of the sum of
absolute differences, so faint change that is spread out counts as much as dense change that is not.
"""

from __future__ import annotations

from typing import Literal

import torch
from scipy.ndimage import label as components
from torch import Tensor

from medcf.metrics.truth import blurred

__all__ = ["LUNG", "area", "half", "lobe", "num_lesions", "share"]

Side = Literal["right", "left"]
#: Label of the patient's lungs.
LUNG: dict[Side, int] = {"right": 1, "left": 2}
LEAST_PIXELS = 6  # of a separate lesion; at 64 pixels the smallest opacity of the phantoms has about 50


def share(change: Tensor, part: Tensor, whole: Tensor | None = None) -> Tensor:
    """Return which share of the absolute change lies in a part.

    Args:
        change: differences of images (B, 1, H, W).
        part: masks of the same shape.
        whole: masks of what counts; None counts the whole image.

    Returns:
        (B,); NaN where nothing changed.
    """
    size = change.abs().double()
    inside, all_of_it = ((size * mask).flatten(1).sum(1) for mask in (part, 1.0 if whole is None else whole))
    return torch.where(all_of_it > 0, inside / all_of_it, torch.nan)


def half(lungs: Tensor, side: Side) -> Tensor:
    """Return the half of the picture on the patient's side (B, 1, H, W), bool: it ends midway between the lungs.

    Args:
        lungs: labels (B, 1, H, W) of the lungs, 1 right and 2 left.
        side: the patient's side.
    """
    columns = torch.arange(lungs.shape[-1], device=lungs.device).double()

    def center(number: int) -> Tensor:
        weights = (lungs == number).double()
        return (weights * columns).flatten(1).sum(1) / weights.flatten(1).sum(1)

    middle = ((center(LUNG["right"]) + center(LUNG["left"])) / 2)[:, None, None, None]
    inside = columns < middle if side == "right" else columns >= middle
    return inside.expand(lungs.shape)


def lobe(lungs: Tensor, side: Side, name: Literal["upper", "lower"]) -> Tensor:
    """Return the upper or lower half of a lung's height (B, 1, H, W), bool; the captions call these its lobes."""
    lung = lungs == LUNG[side]
    rows = torch.arange(lungs.shape[-2], device=lungs.device)[:, None]
    lowest = torch.where(lung, rows, -1).flatten(1).amax(1)
    highest = torch.where(lung, rows, lungs.shape[-2]).flatten(1).amin(1)
    middle = ((highest + lowest).double() / 2)[:, None, None, None]
    return lung & (rows < middle if name == "upper" else rows >= middle)


def num_lesions(change: Tensor, least: float = 0.1) -> Tensor:
    """Count separate places that became brighter, (B,).

    Args:
        change: differences of images (B, 1, H, W), positive where brighter.
        least: gray values below which nothing is a lesion, whatever its relation to the rest.

    Returns:
        Number of connected regions of at least ``LEAST_PIXELS`` pixels above half of the maximum, after a blur of one
        pixel.
    """
    smooth = blurred(change.float(), 1.0)[:, 0]
    counts = []
    for picture in smooth:
        regions, number = components((picture > max(float(picture.max()) / 2, least)).numpy())
        sizes = torch.bincount(torch.from_numpy(regions).flatten().long(), minlength=number + 1)[1:]
        counts.append(int((sizes >= LEAST_PIXELS).sum()))
    return torch.tensor(counts)


def area(change: Tensor, inside: Tensor, least: float = 0.1) -> Tensor:
    """Return the area where the image became brighter by more than ``least``, as a share of ``inside``, (B,)."""
    mask = inside.flatten(1)
    return ((change.flatten(1) > least) & mask).sum(1).double() / mask.sum(1)
