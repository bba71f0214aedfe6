# SPDX-License-Identifier: Apache-2.0
"""Command line of the augmentation study: ``python -m benchmarks.brain.augmentation_study``."""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.brain.augmentation import ARMS, CONTROL, METHODS, Plan, Pool, Run, Subjects, run_arm, summarize
from benchmarks.brain.rows import COMPARED
from benchmarks.counterfactual.environment import describe_machine
from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.run import Setup, obtain
from benchmarks.counterfactual.tables import Figure, Measure, insert, markdown, write_csv
from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.metrics.bootstrap import bootstrap_interval
from medcf.phantoms import BrainDataset, DegradeBrain, PairedBrainDataset

__all__ = ["CONDITIONS", "Condition", "Source", "bundle_source", "main", "make_pool", "study"]

logger = logging.getLogger(__name__)

#: Images (N, 1, X, Y, Z), names and wanted classes (N,) to counterfactuals of the same shape.
Source = Callable[[Tensor, list[str], Tensor], Tensor]
Transform = Callable[[dict[str, Any]], dict[str, Any]]

MEASURES = (
    Measure("accuracy", "accuracy", "", "↑", 1, percent=True),
    Measure("balanced", "balanced accuracy", "", "↑", 1, percent=True),
    Measure("auc", "AUC", "", "↑", 3),
    Measure("gain", "accuracy above originals twice, over seeds", "", "↑", 1, percent=True),
    Measure("gain_subjects", "the same, over test subjects", "", "↑", 1, percent=True),
    Measure("gain_original", "accuracy above originals, over seeds", "", "↑", 1, percent=True),
    Measure("auc_gain", "AUC above originals twice", "", "↑", 3),
    Measure("learning_rate", "learning rate", "", "", 4),
)


@dataclass(frozen=True)
class Condition:
    """A task at which the baseline is not saturated.

    Attributes:
        title: what it is called.
        count: subjects in a training set.
        degrade: strengths of `DegradeBrain` for training, validation and test subjects alike; None leaves them clean.
    """

    title: str
    count: int
    degrade: dict[str, float] | None = None


#: Of the generator, as the paper has it and with the reconstruction subtracted; fixed here, so that another default of
#: the bundle changes no figure of this study.
SETTINGS = {
    "guidance_scale": 4.0,
    "method_options#controlcg#strength": 0.5,
    "method_options#controlcg#subtract_reconstruction": False,
}
DIFFERENCE = {
    "guidance_scale": 4.0,
    "method_options#controlcg#strength": 0.6,
    "method_options#controlcg#subtract_reconstruction": True,
}

CONDITIONS = {
    "few": Condition("16 subjects, clean scans", 16),
    "degraded": Condition(
        "24 subjects, poor scans (bias field, motion, noise)", 24, {"bias": 0.15, "motion": 1.5, "noise": 0.03}
    ),
}


def bundle_source(bundle: str, work: Path, overrides: dict[str, Any] | None = None, seed: int = 0) -> Source:
    """Counterfactuals by a bundle's inferer and weights; stored, so that a second run takes them from there.

    Args:
        bundle: name of the bundle.
        work: folder for stored results.
        overrides: ids of its config; None takes ``SETTINGS``.
        seed: seed of all noise.
    """
    recipe = Recipe(bundle, ("inference.json",), dict(SETTINGS if overrides is None else overrides))

    def source(images: Tensor, cases: list[str], target: Tensor) -> Tensor:
        inputs = Cases(images, cases, cases, target=target)
        return obtain(Row("controlcg", "counterfactuals", {}), recipe, inputs, Setup(seed=seed), work).image

    return source


def make_pool(
    pairs: Sequence[dict[str, Any]], source: Source, difference: Source, others: Mapping[str, Source] | None = None
) -> Pool:
    """Generate what the arms add, from items of `PairedBrainDataset`.

    Args:
        pairs: the items.
        source: makes counterfactuals.
        difference: makes counterfactuals with the reconstruction subtracted.
        others: further ones, by the names of their parts.
    """
    image, truth, label = (torch.stack([item[key] for item in pairs]) for key in ("image", "image_true", "label"))
    names = [str(item["case"]) for item in pairs]
    # another noise for the way to the same class than for the way to the other
    made = source(
        torch.cat([image, image]), [*names, *(f"{name}-same" for name in names)], torch.cat([1 - label, label])
    )
    other, same = made.split(len(pairs))
    parts = {"image": image, "truth": truth, "counterfactual": other, "reconstruction": same}
    every = {"difference": difference, **(others or {})}
    parts |= {name: make(image, names, 1 - label) for name, make in every.items()}
    return Pool(label, {**parts, "resampled": resampled(image)})


def resampled(images: Tensor, factor: float = 2.0) -> Tensor:
    """Down- and up-sample volumes (N, 1, X, Y, Z): the paper's volumes of the generator's resolution."""
    small = nn.functional.interpolate(images, scale_factor=1 / factor, mode="trilinear", antialias=False)
    return nn.functional.interpolate(small, size=images.shape[2:], mode="trilinear")


def study(
    condition: Condition,
    plan: Plan,
    source: Source,
    difference: Source,
    make_network: Callable[[], torch.nn.Module],
    sets: Callable[[Transform | None], tuple[Sequence[dict[str, Any]], Subjects, Subjects]],
    arms: Sequence[str] = tuple(ARMS),
    store: Path | None = None,
    others: Mapping[str, Source] | None = None,
) -> tuple[dict[str, dict[str, Figure]], Subjects]:
    """Run all arms of a condition.

    Args:
        condition: the task.
        plan: how classifiers are trained; its ``count`` is replaced by the condition's.
        source: makes counterfactuals.
        difference: makes counterfactuals with the reconstruction subtracted.
        make_network: makes an untrained classifier.
        sets: the pool's pairs, validation and test subjects, each item after a transform.
        arms: names in ``ARMS``; must hold the control.
        store: folder of finished arms, so that a run that was killed goes on; None keeps none.
        others: makes counterfactuals of other methods, by the names of their parts; only what the arms need.

    Returns:
        Figures by arm, and the test subjects.
    """
    plan = replace(plan, count=condition.count)
    pairs, validation, test = sets(None if condition.degrade is None else DegradeBrain(**condition.degrade))
    pool = make_pool(pairs, source, difference, others)
    runs = {}
    total = plan.trials * plan.search_seeds + plan.seeds
    with tqdm(total=total * len(arms), desc=condition.title, unit="training") as bar:
        for name in arms:
            question = [pool.subjects(ARMS[name].parts, np.arange(len(pool.label))), validation, test]
            path = None if store is None else store / f"{name}-{_digest(question, plan, make_network())}.npz"
            if path is not None and path.is_file():
                with np.load(path) as stored:
                    runs[name] = Run(float(stored["learning_rate"]), stored["logits"])
                bar.update(total)
                continue
            runs[name] = run_arm(ARMS[name], pool, validation, test, make_network, plan, bar.update)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, learning_rate=runs[name].learning_rate, logits=runs[name].logits)
    return summarize(runs, test.label.numpy()), test


def _digest(sets: Sequence[Subjects], plan: Plan, network: torch.nn.Module) -> str:
    """Name everything that an arm's result answers to."""
    state = hashlib.sha256(f"{plan}{network}".encode())
    for part in sets:
        state.update(part.image.numpy().tobytes() + part.label.numpy().tobytes())
    return state.hexdigest()[:12]


def load_sets(
    cache: Path | None, grid: dict[str, Any], pool: int, tested: int, transform: Transform | None
) -> tuple[Sequence[dict[str, Any]], Subjects, Subjects]:
    """Subjects of the splits demo (training sets), val and test, none of which the diffusion model was trained on."""

    def cached(name: str) -> dict[str, Any]:
        file = None if cache is None else cache / f"augmentation_{name}.npz"
        return {**grid, "cache_file": file, "transform": transform}

    pairs = PairedBrainDataset("demo", pool, **cached(f"pairs_demo_{pool}"))
    others = [BrainDataset(split, tested, **cached(f"{split}_{tested}")) for split in ("val", "test")]
    validation, test = (
        Subjects(torch.stack([item["image"] for item in part]), torch.from_numpy(part.labels)) for part in others
    )
    return list(pairs), validation, test


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    recipe = Recipe(options.bundle, ("inference.json",))
    parser = recipe.open()
    grid = {"size": tuple(parser["spatial_size"]), "spacing": parser["spacing"], "progress": True}
    classifier = parser.get_parsed_content("classifier").eval()
    plan = Plan(seeds=options.seeds)
    sections, labels, rows = [], [], []
    for name in options.condition:
        condition = CONDITIONS[name]
        figures, test = study(
            condition,
            plan,
            bundle_source(options.bundle, options.work / "augmentation"),
            bundle_source(options.bundle, options.work / "augmentation", DIFFERENCE),
            lambda: recipe.open().get_parsed_content("classifier_def"),
            lambda transform: load_sets(options.work / "brains", grid, options.pool, options.tested, transform),
            options.arms,
            options.work / "augmentation",
            {
                row.name: bundle_source(options.bundle, options.work / "augmentation", row.overrides)
                for row in COMPARED
                if row.name in METHODS and row.name in options.arms
            },
        )
        hits = (apply(classifier, test.image, 16).argmax(1) == test.label).numpy()
        low, high = bootstrap_interval(np.mean, hits)
        figures["bundle"] = {"accuracy": Figure(float(hits.mean()), low, high, len(hits))}
        names = [ARMS[arm].label if arm in ARMS else "the bundle's classifier (800 subjects)" for arm in figures]
        sections.append(f"### {condition.title}\n\n{markdown(names, list(figures.values()), MEASURES)}")
        labels += [f"{name}: {each}" for each in names]
        rows += list(figures.values())
    text = "\n".join(sections) + (
        f"\n{options.seeds} seeds, {options.tested} test subjects, training sets drawn from {options.pool} subjects; "
        f"{describe_machine('cpu', 1)} Intervals: 95 %; over subjects BCa and exact. "
        "Figures: `controlcg_augmentation.csv`."
    )
    write_csv(options.out / "controlcg_augmentation.csv", labels, rows)
    page = options.out / "controlcg_augmentation.md"
    if page.is_file():
        insert(page, "augmentation", text)
    sys.stdout.write(text + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brain.augmentation_study", description=__doc__)
    parser.add_argument("--bundle", default="controlcg", help="bundle whose counterfactuals are added")
    parser.add_argument("--condition", nargs="+", choices=tuple(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), help=f"must include {CONTROL}")
    parser.add_argument("--seeds", type=int, default=8, help="trainings per arm (default 8)")
    parser.add_argument("--pool", type=int, default=32, help="subjects from which training sets are drawn (default 32)")
    parser.add_argument("--tested", type=int, default=64, help="validation and test subjects, each (default 64)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder for the page and the figures")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder for stored results")
    return parser


if __name__ == "__main__":
    main()
