# SPDX-License-Identifier: Apache-2.0
"""Findings put into normal chests by words: the right disease, on the named side, in the named lobe, of the named size."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import Cases, apply
from benchmarks.valdmd.localized import LUNG, area, half, lobe, num_lesions, share
from benchmarks.valdmd.rows import INDUCTION_SWEEP, WORDINGS, Wording, induce
from benchmarks.valdmd.sections import Section, summary
from benchmarks.valdmd.task import ChestTask, root_mean_square

__all__ = ["INDUCED", "PAIRS", "SWEPT", "induced_figures", "induction_sections", "induction_sweep", "pair_figures"]

logger = logging.getLogger(__name__)

_THEME, _PAIRS = "induction", "two prompts on the same chests"
INDUCED = (
    Measure("judge", "the judge sees what was asked for", _THEME, "↑", 0, True),
    Measure("f", "f sees it", _THEME, "↑", 0, True),
    Measure("side", "of the change in the lungs, on the named side", _THEME, "↑", 3),
    Measure("half", "of all change, in the named half of the picture", _THEME, "↑", 3),
    Measure("lobe", "of the change in the lungs, in the named lobe", _THEME, "↑", 3),
    Measure("one", "exactly one lesion", _THEME, "↑", 0, True),
    Measure("area", "lungs that got brighter", _THEME, "", 3),
    Measure("outside", "of all change, outside the lungs", _THEME, "↓", 3),
    Measure("floors", "change / floor of differences", _THEME, "", 1),
    Measure("seconds", "seconds per image", _THEME, "↓", 2),
)
PAIRS = (
    Measure("follows", "pairs in which the change follows the word", _PAIRS, "↑", 0, True),
    Measure("swapped", "share on the named side: prompt minus swapped prompt", _PAIRS, "↑", 3),
    Measure("against", "of the difference of both, on its side", _PAIRS, "↑", 3),
    Measure("larger", "pairs in which large is larger than small", _PAIRS, "↑", 0, True),
    Measure("ratio", "area, large / small", _PAIRS, "", 2),
)
SWEPT = tuple(replace(m, theme="strength × guidance") for m in INDUCED if m.key in ("judge", "f", "side", "half", "one", "outside", "seconds"))


def induced_figures(task: ChestTask, cases: Cases, images: Tensor, wording: Wording) -> dict[str, Figure]:
    """Measure what became of normal chests.

    Args:
        task: its judges.
        cases: the chests (N), the first ones of the task.
        images: what they became (N, 1, H, W).
        wording: what was asked for.
    """
    lungs, change, state = cases.truth["lungs"], images - cases.image, wording.state
    anywhere = lungs > 0
    columns = {
        "judge": apply(task.judge, images).argmax(1) == state.label,
        "f": apply(task.classifier, images).argmax(1) == state.label,
        "area": area(change, anywhere),
        "outside": share(change, ~anywhere),
        "floors": root_mean_square(change) / task.floors["difference_floor"][: len(images)],
    }
    if state.side in ("left", "right"):
        columns["side"] = share(change, lungs == LUNG[state.side], anywhere)
        columns["half"] = share(change, half(lungs, state.side))
        columns["one"] = num_lesions(change * anywhere) == 1
        if state.lobe is not None:
            columns["lobe"] = share(change, lobe(lungs, state.side, state.lobe), anywhere)
    return {key: summary(values, cases) for key, values in columns.items()}


def pair_figures(cases: Cases, made: dict[str, Tensor]) -> list[tuple[str, dict[str, Figure]]]:
    """Compare two prompts on the same chests: left and right, and large and small on each side.

    Args:
        cases: the chests (N).
        made: what they became by prompt, each of the first chests (M <= N).
    """
    rows = []
    left, right = (made[f"large lung opacity on the {side}"] for side in ("left", "right"))
    lungs, anywhere = cases.truth["lungs"], cases.truth["lungs"] > 0
    named = {"left": share(left - cases.image, lungs == LUNG["left"], anywhere)}
    named["right"] = share(right - cases.image, lungs == LUNG["right"], anywhere)
    against = (left - right) * anywhere  # brighter where the left prompt put something, darker where the right one did
    on_side = ((against > 0) & (lungs == LUNG["left"])) | ((against < 0) & (lungs == LUNG["right"]))
    columns = {
        "follows": (named["left"] > 0.5) & (named["right"] > 0.5),
        "swapped": named["left"] + named["right"] - 1,
        "against": share(against, on_side),
    }
    rows.append(("large on the left, large on the right", {key: summary(v, cases) for key, v in columns.items()}))
    for side in ("left", "right"):
        small = made[f"small lung opacity on the {side}"]
        count = len(small)
        areas = [area((images - cases.image)[:count], anywhere[:count]) for images in (_first(made, side, count), small)]
        columns = {"larger": areas[0] > areas[1], "ratio": areas[0] / areas[1].clamp(min=1e-3)}
        rows.append((f"large and small on the {side}", {key: summary(v, cases) for key, v in columns.items()}))
    return rows


def _first(made: dict[str, Tensor], side: str, count: int) -> Tensor:
    return made[f"large lung opacity on the {side}"][:count]
