# SPDX-License-Identifier: Apache-2.0
"""When f is wrong: does the difference map point to what fooled it?

``python -m benchmarks.counterfactual.misclassified --count 64`` draws phantoms until f has misclassified enough of them
by truth, and as many that f classifies correctly, with the same answers of f. Each is turned into the other class than
f's answer. What speaks for f's answer is known on phantoms: for "standard plane", the thalami and the cavum where the
image shows them; for "non-standard plane", the pixels at which a structure is missing or too many compared with the
same head's standard plane. In a misclassified image this is what fooled f, since its presence or absence disagrees with
the true class. The table has the share of the absolute difference inside these pixels, and the same for the region put
at random places.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.counterfactual.environment import describe_run
from benchmarks.counterfactual.phantoms import STRUCTURES
from benchmarks.counterfactual.rows import METHODS, select
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure, insert_or_write, markdown, write_csv
from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.metrics import bootstrap_interval
from medcf.phantoms.head.datasets import draw_case, native_size, on_grid, to_tensors

__all__ = ["draw_groups", "evidence", "random_share", "share_inside"]

logger = logging.getLogger(__name__)

#: Class names of f's answers.
ANSWERS = ("non-standard plane", "standard plane")
GROUPS = ("misclassified", "classified correctly")
BATCH = 32
PLACES = 64

MEASURES = (
    Measure("inside", "share of the difference inside", "what speaks for f's answer", "↑", 1, True),
    Measure("random", "the same at random places", "what speaks for f's answer", "", 1, True),
    Measure("gain", "inside minus random", "what speaks for f's answer", "↑", 1, True),
    Measure("area", "its share of the image", "what speaks for f's answer", "", 1, True),
    Measure("flips", "flips of f", "what speaks for f's answer", "↑", 0, True),
)


def evidence(segmentation: Tensor, standard: Tensor, answer: int) -> Tensor:
    """Return where an image shows what speaks for f's answer.

    Args:
        segmentation: labels of the image (1, H, W).
        standard: labels of the same head's standard plane (1, H, W).
        answer: class that f names, 1 for a standard plane.

    Returns:
        Boolean (1, H, W).
    """
    if answer == 1:
        return (segmentation == STRUCTURES["thalami"]) | (segmentation == STRUCTURES["cavum"])
    shown = [(segmentation == label) != (standard == label) for label in STRUCTURES.values()]
    return torch.stack(shown).any(0)


def share_inside(difference: Tensor, region: Tensor) -> Tensor:
    """Return the share of a map (N, 1, H, W), not negative, inside a region: (N,), NaN where the map is 0."""
    return (difference * region).flatten(1).sum(1) / difference.flatten(1).sum(1)


def random_share(difference: Tensor, region: Tensor, seed: int = 0, places: int = PLACES) -> Tensor:
    """Return the mean share inside a region that is moved to random places of the image, around its edges: (N,)."""
    rng = np.random.default_rng(seed)
    shifts = [tuple(int(rng.integers(side)) for side in region.shape[-2:]) for _ in range(places)]
    return torch.stack([share_inside(difference, region.roll(shift, (-2, -1))) for shift in shifts]).mean(0)


def draw_groups(
    classifier: Any, count: int, *, split: str, size: tuple[int, int], spacing: float, limit: int
) -> dict[str, list[dict[str, Any]]]:
    """Draw phantoms of both classes until ``count`` are misclassified, and match each with a correctly classified one.

    Args:
        classifier: f, images to logits.
        count: number of cases in each group.
        split: whose subjects.
        size: rows and columns.
        spacing: pixel spacing in mm.
        limit: number of phantoms to draw at most.

    Returns:
        Cases by group, with ``image``, ``region``, ``answer``, ``label`` and ``case``.

    Raises:
        ValueError: if ``limit`` phantoms hold too few that f misclassifies.
    """
    native, native_spacing = native_size(size, spacing)
    render: dict[str, Any] = {"size": native, "spacing": native_spacing}
    wrong: list[dict[str, Any]] = []
    right: list[dict[str, Any]] = []
    for first in range(0, limit, BATCH):
        batch = []
        for index in range(first, min(first + BATCH, limit)):
            subject, sample = draw_case("fetal_head", split, index, **render)
            image, segmentation = to_tensors(*on_grid(sample, size))
            name = f"{split}-{sample.subject:07d}"
            batch.append({"image": image, "segmentation": segmentation, "label": sample.label, "case": name})
            batch[-1]["subject"] = subject
        answers = apply(classifier, torch.stack([case["image"] for case in batch])).argmax(1).tolist()
        for case, answer in zip(batch, answers, strict=True):
            case["answer"] = answer
            (right if answer == case["label"] else wrong).append(case)
        logger.info("%d phantoms, %d misclassified", first + len(batch), len(wrong))
        if len(wrong) >= count:
            break
    else:
        raise ValueError(f"f misclassifies {len(wrong)} of {limit} phantoms, not {count}: raise --limit.")
    groups = dict(zip(GROUPS, (wrong[:count], _matched(wrong[:count], right)), strict=True))
    for case in (case for cases in groups.values() for case in cases):
        _, standard = to_tensors(*on_grid(case["subject"].render(seed=1, **render), size))
        case["region"] = evidence(case["segmentation"], standard, case["answer"])
    return groups


def _matched(wrong: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take a correctly classified case with the same answer of f for each misclassified one."""
    waiting = {answer: [case for case in right if case["answer"] == answer] for answer in (0, 1)}
    return [waiting[case["answer"]].pop(0) for case in wrong if waiting[case["answer"]]]


def _figures(cases: Sequence[dict[str, Any]], difference: Tensor, flipped: Tensor) -> dict[str, Figure]:
    region = torch.stack([case["region"] for case in cases])
    inside, chance = share_inside(difference, region), random_share(difference, region)
    values = {
        "inside": inside,
        "random": chance,
        "gain": inside - chance,
        "area": region.flatten(1).double().mean(1),
        "flips": flipped.double(),
    }
    counts = region.flatten(1).any(1) & inside.isfinite()  # nothing can point to an empty region
    figures = {}
    for key, column in values.items():
        kept = column[counts].double().numpy()
        low, high = bootstrap_interval(np.mean, kept) if len(kept) > 1 else (float("nan"), float("nan"))
        figures[key] = Figure(float(kept.mean()) if len(kept) else float("nan"), low, high, len(kept))
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Draw the cases, explain them, and write a CSV and a table."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    recipe = Recipe("diffice", ("inference.json",))
    get = recipe.open().get_parsed_content
    size, spacing = (int(get("spatial_size")[0]), int(get("spatial_size")[1])), float(get("spacing"))
    grid: dict[str, Any] = {"size": size, "spacing": spacing}
    groups = draw_groups(get("classifier").eval(), options.count, split=options.split, limit=options.limit, **grid)
    setup = Setup(options.device, options.threads, options.seed)
    labels, rows = [], []
    for row in select(METHODS, options.rows):
        for group, cases in groups.items():
            image, names = torch.stack([case["image"] for case in cases]), [case["case"] for case in cases]
            answers = torch.tensor([case["answer"] for case in cases])
            inputs = Cases(image, names, names, target=1 - answers)
            result = obtain(row, recipe, inputs, setup, options.work / "misclassified")
            difference = (result.image - image).abs()
            parts = [(group, torch.ones_like(answers, dtype=torch.bool))]
            parts += [(f"{group}, as {ANSWERS[answer]}", answers == answer) for answer in answers.unique().tolist()]
            for name, kept in parts:
                chosen = [case for case, keeps in zip(cases, kept.tolist(), strict=True) if keeps]
                figures = _figures(chosen, difference[kept], result.flipped[kept])
                labels.append(f"{row.label}: {name} ({figures['inside'].count} of {len(chosen)})")
                rows.append(figures)
    stem = "misclassified"
    write_csv(options.out / f"{stem}.csv", labels, rows)
    table = markdown(labels, rows, MEASURES)
    run = describe_run(f"benchmarks.counterfactual.{stem}", arguments, options.device, options.threads, stem)
    insert_or_write(options.out / f"{stem}.md", "table", f"{table}\n{run}", stem, "When f is wrong")
    sys.stdout.write(table)


def _parser() -> argparse.ArgumentParser:
    program = "python -m benchmarks.counterfactual.misclassified"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="misclassified phantoms (default 64)")
    parser.add_argument("--limit", type=int, default=40_000, help="phantoms to draw at most")
    parser.add_argument("--split", default="test", help="whose phantoms (default test)")
    parser.add_argument("--rows", nargs="+", default=["diffice"], help="methods: names of the table's rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder for the table")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder for stored results")
    return parser


if __name__ == "__main__":
    main()
