# SPDX-License-Identifier: Apache-2.0
"""Healthy counterparts: methods, controls, maps that no counterfactual made, settings, subgroups, solvers, floors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from monai.visualize import GradCAM
from torch import Tensor

from benchmarks.counterfactual.controls import CHOSEN_ON, best_blur
from benchmarks.counterfactual.rows import Row, select, toward_own_class
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.studies import uncomputed, without_cost
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.solvers import make, on_gaussian
from benchmarks.valdmd.localized import area
from benchmarks.valdmd.measure import MAPS, MEASURES, SUBGROUPS, measure, measure_map
from benchmarks.valdmd.rows import CONTROLS, HEALTHY_SWEEP, METHODS, SOLVERS, solver
from benchmarks.valdmd.sections import Section, summary
from benchmarks.valdmd.task import ChestTask, sick_task
from medcf.inferers.outcome import root_mean_square
from medcf.metrics import bootstrap_interval
from medcf.metrics.truth import blurred, ratio_of_sums
from medcf.phantoms import ChestState

__all__ = ["floor_section", "healthy_sections", "healthy_sweep", "solver_section", "subgroup_section"]

logger = logging.getLogger(__name__)

_CHOSEN = ("judge", "judge_entered", "flips", "truth_ratio", "truth_lesion", "auprc", "rank_1", "healthy_lung")
#: What settings are chosen by.
CHOICE = tuple(replace(each, theme="setting") for each in MEASURES if each.key in _CHOSEN)
SOLVED = (
    Measure("gaussian", "error on Gaussian data", "solver", "↓", 4),
    *(replace(each, theme="solver") for each in MEASURES
      if each.key in ("judge", "truth_ratio", "auprc", "rank_1", "floors", "seconds", "evaluations")),
)  # fmt: skip
FLOORS = (
    Measure("floor", "encoded and decoded, RMS", "autoencoder's floor", "↓", 4),
    Measure("difference_floor", "difference of two decoded images, RMS", "autoencoder's floor", "↓", 4),
    Measure("change", "true change, RMS", "autoencoder's floor", "", 4),
    Measure("floor_ratio", "floor² / true change²", "autoencoder's floor", "↓", 3),
    Measure("difference_ratio", "floor of differences² / true change²", "autoencoder's floor", "↓", 4),
    Measure("area", "lung that changes visibly", "autoencoder's floor", "", 0, True),
)


def healthy_sections(task: ChestTask, setup: Setup, work: Path, names: Sequence[str] | None = None) -> list[Section]:
    """Measure methods and controls on sick phantoms, and maps that no counterfactual made.

    Args:
        task: sick cases.
        setup: where to run.
        work: folder of stored results.
        names: only these rows.
    """
    section, shown = Section(MEASURES), []
    for row in select((*METHODS, *CONTROLS), names):
        result = _obtained(task, row, setup, work)
        own = _obtained(task, toward_own_class(row), setup, work) if toward_own_class(row) in CONTROLS else None
        section.add(row.label, measure(task, result, own))
        if not row.control:
            shown.append((row.label, result))
        logger.info("%s: measured", row.label)
    other = sick_task(task.recipe.bundle, split="val", count=CHOSEN_ON, overrides=task.recipe.overrides)
    sigma = best_blur(other.cases.image, other.cases.truth["image"])
    images = {
        f"control: input blurred by {sigma:g} pixels": blurred(task.cases.image, sigma),
        "ceiling: the truth with the input's grain": task.rendered(ChestState(), again=False),
        "ceiling: the true healthy chest": task.cases.truth["image"],
    }
    for label, image in images.items():
        section.add(label, without_cost(measure(task, uncomputed(task.cases, image))))
    maps = Section(MAPS)
    for label, values in saliency(task):
        maps.add(label, measure_map(task, values))
    section.pictures = [*shown, ("the true healthy chest", uncomputed(task.cases, task.cases.truth["image"]))]
    return [section, maps]


def saliency(task: ChestTask) -> Iterator[tuple[str, Tensor]]:
    """Yield maps (N, 1, H, W), not negative, that explain the class that f predicts, and some that know nothing."""
    classifier, images = task.classifier, task.cases.image
    for name, layer in (("last block", -1), ("last block but one", -2)):
        layers = [
            found for found, _ in classifier.named_modules() if found.startswith("blocks.") and found.count(".") == 1
        ]
        # MONAI's default postprocessing turns the map upside down and stretches it to its own range.
        cam = GradCAM(classifier, layers[layer], postprocessing=lambda values: values)
        pairs = zip(images.split(1), task.predicted.tolist(), strict=True)
        found = [cam(image.clone().requires_grad_(), class_idx=label).detach() for image, label in pairs]
        yield f"GradCAM on f, {name}", torch.cat(found).as_subclass(Tensor).clamp(min=0)
    yield "control: |input - input blurred by 2 pixels|", (images - blurred(images, 2.0)).abs()
    yield "control: brightness of the input", (images + 1).clamp(min=0)
    yield "control: random", torch.rand(images.shape, generator=torch.Generator().manual_seed(0))


def healthy_sweep(task: ChestTask, setup: Setup, work: Path) -> Section:
    """Measure the default method by strength and guidance."""
    section = Section(CHOICE)
    for row in HEALTHY_SWEEP:
        section.add(row.label, without_cost(measure(task, _obtained(task, row, setup, work), measures=CHOICE)))
    return section


def solver_section(task: ChestTask, setup: Setup, work: Path) -> Section:
    """Compare solvers by their exact error, by what the judge says of plain SDEdit, and by their time."""
    section = Section(SOLVED)
    for name, steps in SOLVERS:
        row = solver(name, steps)
        figures = measure(task, _obtained(task, row, setup, work), measures=SOLVED)
        exact = Figure(on_gaussian(make(name, steps, "respaced")))
        section.add(row.label, {"gaussian": exact, **figures})
        logger.info("%s: measured", row.label)
    return section


def floor_section(task: ChestTask) -> Section:
    """Compare both floors of the autoencoder with the true changes."""
    truth, image = task.cases.truth, task.cases.image
    change = truth["image"] - image
    true = root_mean_square(change)
    grain = root_mean_square(task.rendered(ChestState(), again=False) - truth["image"])
    columns = {
        **task.floors,
        "change": true,
        "area": area(change.abs(), truth["lungs"] > 0),
    }
    section = Section(FLOORS)
    names = ("normal", "lung opacity", "COVID-19", "viral pneumonia")
    for number, label in ((None, "all sick"), *((k, names[k]) for k in (1, 2, 3))):
        kept = torch.ones(len(image), dtype=torch.bool) if number is None else truth["label"] == number
        if not kept.any():
            continue
        figures = {key: summary(values, task.cases, kept) for key, values in columns.items()}
        for key, floor in (("floor_ratio", "floor"), ("difference_ratio", "difference_floor")):
            squares = [values[kept].square().double().numpy() for values in (task.floors[floor], true)]
            low, high = bootstrap_interval(ratio_of_sums, *squares)
            figures[key] = Figure(ratio_of_sums(*squares), low, high, int(kept.sum()))
        section.add(label, figures)
    section.add("grain alone", {"change": summary(grain, task.cases)})
    return section


def subgroup_section(task: ChestTask, setup: Setup, work: Path) -> Section:
    """Measure the default method for adults and children, with and without a device.

    Args:
        task: sick cases, drawn without confounding of disease and age, half of them with a device.
        setup: where to run.
        work: folder of stored results.
    """
    truth = task.cases.truth
    groups = {
        "adults": truth["child"] == 0,
        "children": truth["child"] == 1,
        "children with viral pneumonia": (truth["child"] == 1) & (truth["label"] == 3),
        "adults with viral pneumonia": (truth["child"] == 0) & (truth["label"] == 3),
        "no device": truth["device"] == 0,
        "pacemaker": truth["device"] == 1,
        "wires": truth["device"] == 2,
    }
    section = Section(SUBGROUPS)
    for row in (METHODS[0], METHODS[1]):
        result = _obtained(task, row, setup, work)
        for label, kept in groups.items():
            if int(kept.sum()) < 2:
                continue
            part = replace(task, cases=task.cases.where(kept))
            figures = without_cost(measure(part, result.where(kept), measures=SUBGROUPS))
            section.add(f"{row.label}: {label} ({int(kept.sum())})", figures)
    return section


def _obtained(task: ChestTask, row: Row, setup: Setup, work: Path) -> Result:
    cases = task.own_class_cases if row.toward_own_class else task.cases
    return obtain(row, task.recipe, cases, setup, work)
