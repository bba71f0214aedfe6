# SPDX-License-Identifier: Apache-2.0
"""What a method must leave as it is: the axioms, which need no truth and so run on real images, too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.rows import METHODS, Row, select
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import Cases, Recipe, Task, apply
from medcf.metrics import axioms
from medcf.metrics.exclusions import summarize

__all__ = ["AXIOMS", "CYCLES", "REPEATS", "Asked", "axiom_figures", "axiom_rows"]

logger = logging.getLogger(__name__)

#: After how many runs composition is measured, and after how many times there and back: 20 runs of each method.
REPEATS, CYCLES = (1, 10), (1, 5)
_THEME = "axioms"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


AXIOMS = (
    Measure("flips", "flips of f", _THEME, "↑", 0, True),
    *(Measure(f"composition_{n}", f"composition, {_times(n)}", _THEME, "↓", 3) for n in REPEATS),
    *(Measure(f"reversibility_{n}", f"there and back, {_times(n)}", _THEME, "↓", 3) for n in CYCLES),
    Measure("minimality", "distance to the input", _THEME, "↓", 3),
    Measure("regenerated", "of it, regeneration", _THEME, "↓", 2),
    Measure("other_factors", "other factors, SD", _THEME, "↓", 2),
    Measure("other_factors_own", "the same toward the own class", _THEME, "↓", 2),
)


@dataclass(frozen=True)
class Asked:
    """Images of two classes that a bundle explains.

    Attributes:
        recipe: the bundle.
        cases: the images; no truth is needed.
        own: their classes (N,), 0 or 1; each is asked for the other one, and for its own.
        classifier: f, images to logits (B, 2).
        recover: images to factors (B, P) that are no part of the class; None where nothing recovers them.
        std: spread (P,) of these factors over the population.
    """

    recipe: Recipe
    cases: Cases
    own: Tensor
    classifier: Callable[[Tensor], Tensor]
    recover: Callable[[Tensor], Tensor] | None = None
    std: Sequence[float] = ()


def axiom_figures(
    asked: Asked, row: Row, setup: Setup, work: Path, run: Callable[..., Any] = obtain
) -> dict[str, Figure]:
    """Run a method there and back, and measure what it must leave as it is.

    Args:
        asked: images and their classes.
        row: the method.
        setup: where to run.
        work: folder of stored results.
        run: what runs it, called as `obtain` is; its result has an ``image``. By default each run is stored.

    Returns:
        Figures by the keys of ``AXIOMS``, with intervals over subjects.
    """
    also_unchanged = replace(row, toward_own_class=True)  # which also runs images that are in the wanted class
    own, cases, recover = asked.own, asked.cases, asked.recover
    made: list[Tensor] = []

    def explain(images: Tensor, target: Tensor) -> Tensor:
        wanted = replace(cases, image=images, target=target)
        found = run(also_unchanged, asked.recipe, wanted, setup, work).image
        if not torch.equal(target, own):  # first of the inputs themselves
            made.append(found)
        return found

    known = {} if recover is None else {"recover": lambda x: apply(recover, x), "std": asked.std}
    columns = axioms(explain, cases.image, own, 1 - own, repeats=REPEATS, cycles=CYCLES, **known)
    before, after = (apply(asked.classifier, images) for images in (cases.image, made[0]))
    reached = (after.argmax(1) != own) & after.isfinite().all(1)
    columns["flips"] = reached.double().masked_fill(before.argmax(1) != own, torch.nan)
    found = {name: summarize(each, groups=cases.subject, share=name == "flips") for name, each in columns.items()}
    return {name: Figure(each.mean, *each.interval, each.count) for name, each in found.items()}


def axiom_rows(
    task: Task, setup: Setup, work: Path, names: Sequence[str] | None = None
) -> tuple[list[str], list[dict[str, Figure]]]:
    """Measure the axioms of the methods and of doing nothing.

    Args:
        task: cases.
        setup: where to run.
        work: folder of stored results.
        names: only these rows.

    Returns:
        Labels and figures of the rows.
    """
    rows = [row for row in METHODS if row.num_seeds == 1 and (not row.control or row.name == "unchanged")]
    own = torch.full((len(task.cases),), 1 - task.target)
    asked = Asked(task.recipe, task.cases, own, task.classifier, task.recover, task.parameter_std)
    labels, figures = [], []
    for row in select(rows, names):
        figures.append(axiom_figures(asked, row, setup, work))
        labels.append(row.label)
        logger.info("%s: axioms measured", row.label)
    return labels, figures
