# SPDX-License-Identifier: Apache-2.0
"""Findings put into normal chests by words: the disease, the side, the lobe and the size that were named."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.measure import costs
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import Cases, apply
from benchmarks.valdmd.localized import LUNG, area, half, lobe, num_lesions, share
from benchmarks.valdmd.rows import INDUCTION_SWEEP, WORDINGS, Wording, induce
from benchmarks.valdmd.sections import Section, summary
from benchmarks.valdmd.task import ChestTask
from medcf.inferers.outcome import root_mean_square

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
_CHOSEN = ("judge", "f", "side", "half", "one", "outside", "seconds")
SWEPT = tuple(replace(each, theme="strength and guidance") for each in INDUCED if each.key in _CHOSEN)


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
        both = (made[f"large lung opacity on the {side}"][:count], small)
        areas = [area(images - cases.image[:count], anywhere[:count]) for images in both]
        columns = {"larger": areas[0] > areas[1], "ratio": areas[0] / areas[1].clamp(min=1e-3)}
        rows.append((f"large and small on the {side}", {key: summary(v, cases) for key, v in columns.items()}))
    return rows


def induction_sections(task: ChestTask, setup: Setup, work: Path) -> list[Section]:
    """Run every wording, compare prompts in pairs, and measure the true states in the same way.

    Args:
        task: normal cases.
        setup: where to run.
        work: folder of stored results.
    """
    wordings, made = Section(INDUCED), {}
    for wording in WORDINGS:
        kind = "held-out wording: " if wording.held_out else ""
        made[wording.prompt] = _run(task, wordings, wording, setup, work, label=f"{kind}{wording.prompt}")
    for wording in WORDINGS[:2]:
        _run(task, wordings, replace(wording, share=2), setup, work, label=f"plain: {wording.prompt}", plain=True)
    truths = {}
    for wording in (*WORDINGS[:8], *(each for each in WORDINGS if each.state.label > 1 and not each.held_out)):
        cases = _first(task.cases, wording.share)
        truths[wording.prompt] = task.rendered(wording.state, len(cases), again=False)
        wordings.add(f"truth: {wording.prompt}", induced_figures(task, cases, truths[wording.prompt], wording))
    pairs = Section(PAIRS)
    for kind, images in (("", made), ("truth: ", truths)):
        for label, figures in pair_figures(task.cases, images):
            pairs.add(kind + label, figures)
    return [wordings, pairs]


def induction_sweep(task: ChestTask, setup: Setup, work: Path) -> Section:
    """Put a large opacity on either side by strength and guidance, with and without subtraction of the own prompt."""
    section = Section(SWEPT)
    for strength, guidance in INDUCTION_SWEEP:
        setting = {"method_options#sdedit#strength": strength, "guidance_scale": guidance}
        for number, wording in enumerate(WORDINGS[:2]):
            label = f"strength {strength:g}, guidance {guidance:g}, {('left', 'right')[number]}"
            _run(task, section, wording, setup, work, label=label, name=f"{wording.name}_{strength:g}_{guidance:g}",
                 **setting)  # fmt: skip
    return section


def _run(
    task: ChestTask, section: Section, wording: Wording, setup: Setup, work: Path, *, label: str, **row: Any
) -> Tensor:
    """Run a wording over its share of the cases, add the figures to a section, and return the images."""
    cases = _first(task.cases, wording.share)
    result = obtain(induce(wording.prompt, **row), task.recipe, cases, setup, work)
    figures = induced_figures(task, cases, result.image, wording)
    section.add(label, figures | {"seconds": costs(result)["seconds"]})
    logger.info("%s: measured", label)
    return result.image


def _first(cases: Cases, share: int) -> Cases:
    """Return the first of so many parts of the cases, at least two."""
    return cases.where(torch.arange(len(cases)) < max(len(cases) // share, 2))
