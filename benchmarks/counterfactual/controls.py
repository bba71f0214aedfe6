# SPDX-License-Identifier: Apache-2.0
"""Controls and ceilings that no method makes: without them, an error to the truth means nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.counterfactual.ceiling import regression
from benchmarks.counterfactual.phantoms import phantom_pairs
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.studies import uncomputed
from benchmarks.counterfactual.task import Task
from medcf.metrics import RelativeTruthError
from medcf.metrics.truth import blurred

__all__ = ["best_blur", "controls", "edited"]

logger = logging.getLogger(__name__)

#: Standard deviations in pixels to choose from.
BLURS = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
CHOSEN_ON = 32


def best_blur(image: Tensor, truth: Tensor, sigmas: Sequence[float] = BLURS) -> float:
    """Return the blur of the inputs that comes nearest to the truth, by the error over doing nothing.

    Args:
        image: inputs (N, 1, *spatial) of a split that is not reported.
        truth: their paired truth.
        sigmas: standard deviations in pixels to choose from.
    """

    def error(sigma: float) -> float:
        metric = RelativeTruthError()
        metric(blurred(image, sigma), truth, image=image)
        return metric.aggregate()

    errors = {sigma: error(sigma) for sigma in sigmas}
    sigma = min(errors, key=lambda each: errors[each])
    logger.info("best blur of the inputs: %g pixels, with an error of %.3f", sigma, errors[sigma])
    return sigma


def edited(image: Tensor, truth: Tensor, place: Tensor) -> Tensor:
    """Return a perfect edit of a place: the truth there, the input elsewhere."""
    return truth.where(place, image)


def controls(task: Task, work: Path, *, ceiling_steps: int, threads: int = 1) -> Iterator[tuple[str, Result]]:
    """Yield the rows that no method makes, by label.

    Args:
        task: phantoms with their truth.
        work: folder for the regression's weights.
        ceiling_steps: training steps of the regression; 0 leaves it out.
        threads: threads of torch while it is trained.
    """
    image, truth = task.cases.image, task.cases.truth
    sigma = best_blur(*phantom_pairs(task.recipe, "val", CHOSEN_ON))
    rows = {f"control: input blurred by {sigma:g} pixels": blurred(image, sigma)}
    if ceiling_steps:
        network = regression(task.recipe, work, steps=ceiling_steps, threads=threads)
        rows["ceiling: regression trained on pairs"] = network(image)
    rows["ceiling: perfect edit of the structures that change"] = edited(image, truth["image"], truth["structure"])
    rows["ceiling: perfect edit of the head"] = edited(image, truth["image"], truth["organ"])
    rows["ceiling: the truth with other speckle"] = truth["other_speckle"]
    rows["ceiling: the true standard plane"] = truth["image"]
    for label, images in rows.items():
        yield label, uncomputed(task.cases, images)
