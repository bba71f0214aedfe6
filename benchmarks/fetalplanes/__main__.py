# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes make a classifier better? Tian et al.'s study on phantoms: ``python -m benchmarks.fetalplanes``.

The generator and its guide see the real images of the classifiers' training and no others, as in the paper. Every arm
takes the same number of gradient steps. Synthetic sets: without guidance in three sizes; classifier-free, by the guide
and by both; what filters keep and reject, equally many; and of the bundle's generator, which saw 8000 other images.
What is done is kept (``--work``), and a killed study goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from benchmarks.command_line import setting
from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.tables import insert_or_write
from benchmarks.fetalplanes.sets import GUIDANCE, Generator, distances, filtered, generator, store
from benchmarks.fetalplanes.study import NETWORKS, Arm, Recipe, Result, Sets, Study, subset
from benchmarks.fetalplanes.tables import (
    CLASSES,
    confusions,
    difference_table,
    ensemble_rows,
    rows_of,
    score_table,
)
from benchmarks.fulora.images import Images
from benchmarks.fulora.tables import lines
from medcf.evaluation.classification import draw_confusion
from medcf.phantoms import PlanesDataset
from medcf.runtime.atomic import write_csv

__all__ = ["ARMS", "PAIRS", "add_options", "main", "report"]

logger = logging.getLogger("benchmarks.fetalplanes")

SITE: dict[str, Any] = {"site": "A", "balance": "fetal_planes_db", "captions": False}
SEED = 41
#: "SYN" is the set of the regimes: without guidance, ``--num-synthetic`` images.
ARMS: dict[str, Arm] = {
    "real": Arm("real images", "real"),
    "traditional": Arm("augmented real images", "traditional"),
    "synthetic": Arm("synthetic images alone", "synthetic", "SYN"),
    "mixed": Arm("real and synthetic images", "mixed", "SYN"),
    "pretrained": Arm("synthetic, then real images", "pretrained", "SYN"),
    "pretrained_traditional": Arm("augmented, then real images", "pretrained_traditional"),
    "final": Arm("augmented and synthetic, then real images", "final", "SYN"),
    "last_layer": Arm("the same, the last layer alone on real images", "last_layer", "SYN"),
    "amount_few": Arm("synthetic (few), then real images", "pretrained", "SYN_FEW"),
    "amount_many": Arm("synthetic (many), then real images", "pretrained", "SYN_MANY"),
    "free": Arm("synthetic (classifier-free guidance), then real", "pretrained", "SYN_FREE"),
    "classifier": Arm("synthetic (classifier guidance), then real", "pretrained", "SYN_CLASSIFIER"),
    "both": Arm("synthetic (both guidances), then real", "pretrained", "SYN_BOTH"),
    "good": Arm("synthetic (good), then real images", "pretrained", "SYN_GOOD"),
    "bad": Arm("synthetic (bad), then real images", "pretrained", "SYN_BAD"),
    "other": Arm("synthetic (generator of other subjects), then real", "pretrained", "SYN_OTHER"),
    "final_other": Arm("augmented and synthetic (generator of other subjects), then real", "final", "SYN_OTHER"),
}
PAIRS = (
    *((arm, "real") for arm in ("traditional", "synthetic", "mixed", "pretrained")),
    *((arm, "traditional") for arm in ("pretrained_traditional", "pretrained", "final", "other", "final_other")),
    *(("final", "pretrained_traditional"), ("final_other", "pretrained_traditional"), ("last_layer", "final")),
    *((arm, "pretrained") for arm in ("free", "classifier", "both", "amount_few", "amount_many", "other")),
    *(("good", "bad"), ("good", "real")),
)
SHOWN = ("real", "traditional", "synthetic", "pretrained", "final", "final_other")
DEFAULTS: dict[str, Any] = {"networks": ["SonoNet-16"], "work": Path("output/benchmarks/fetalplanes")}


def main(arguments: list[str] | None = None) -> None:
    """Run the study and write its tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    sets, filters = _sets(options)
    text = report(ARMS, PAIRS, SHOWN, sets, options, "fetalplanes_study")
    unseen = _planes("oracle", 600, options, balance="equal")
    parts = {name: sets.synthetic[name] for name in ("SYN", "SYN_GOOD", "SYN_BAD") if name in sets.synthetic}
    rows = [
        [name, len(images), *(f"{value:.2f}" for value in distances(images, unseen, range(len(CLASSES))))]
        for name, images in {"real": sets.train, **parts}.items()
    ]
    text += f"\n\nFréchet distance to unseen images, features of the judge.{filters}\n\n"
    text += lines(["images", "number", *CLASSES], rows)
    run = describe_machine(options.device, options.threads * options.processes)
    text += f"\n\n{run} Command: `{describe_command('benchmarks.fetalplanes', arguments)}`."
    insert_or_write(
        options.out / "fetalplanes.md", "study", text, "fetalplanes_study", "Diffusion augmentation's study"
    )
    sys.stdout.write(text + "\n")


def report(
    arms: Mapping[str, Arm],
    pairs: Sequence[tuple[str, str]],
    shown: Sequence[str],
    sets: Sets,
    options: argparse.Namespace,
    stem: str,
) -> str:
    """Train all that is asked for, write the CSV and the figure, and return the tables.

    Args:
        arms: by name.
        pairs: arms to compare.
        shown: arms of the confusion matrices and the ensembles.
        sets: the images.
        options: of the command line, see `add_options`.
        stem: name of the files.
    """
    recipe = Recipe(options.iterations, options.batch_size, options.learning_rate, options.device, options.threads)
    study = Study(arms, sets, recipe, options.work / "trainings" / stem)
    results: list[Result] = study.run(options.networks, options.arms, options.seeds, options.processes)
    counts = torch.bincount(sets.train.label, minlength=len(CLASSES)).tolist()
    rows = rows_of(results, counts)
    write_csv(options.out / f"{stem}.csv", rows)
    draw_confusion(options.out / f"{stem}_confusion.png", confusions(results, arms, shown), CLASSES)
    told = (
        f"{options.iterations} steps of {options.batch_size} images in every arm, {options.seeds} seeds; no weights of "
    )
    told += f"ImageNet. Real training images by class: {', '.join(map(str, counts))} ({', '.join(CLASSES)}); "
    told += f"{len(sets.val)} for ensembles, {len(sets.test)} tested. "
    told += "Synthetic: " + ", ".join(f"{name} {len(images)}" for name, images in sets.synthetic.items()) + ". "
    told += "Rare are classes with less than a tenth of the real images. Intervals: 95 %, Student's, over seeds: they "
    told += f"do not say how much other images would change. Every training: `{stem}.csv`."
    figure = f"![Confusion matrices, rows are true classes]({stem}_confusion.png)"
    parts = [score_table(rows, arms), difference_table(rows, arms, pairs), ensemble_rows(results, arms, shown)]
    return "\n\n".join([*parts, figure, told])


def _planes(split: str, count: int, options: argparse.Namespace, **further: Any) -> Images:
    """Render planes of the site; those of "train" are the ones that the bundle renders for the generator."""
    size, seed = options.size, SEED if split == "train" else 0
    name = "_".join(str(part) for part in (split, count, size, *further.values()))
    given: dict[str, Any] = {**SITE, **further, "size": (size, size), "spacing": None, "seed": seed}
    return Images.of(PlanesDataset(split, count, cache_file=options.work / "cache" / f"planes_{name}.npz", **given))


def _sets(options: argparse.Namespace) -> tuple[Sets, str]:
    """Return the images of all arms, and a sentence on the filters."""
    ids, each = dict(options.set), options.num_synthetic // len(CLASSES)
    cache = {"cache_dir": options.work / "cache", "spatial_size": [options.size, options.size]}
    train = _planes("train", options.num_real, options)
    data = {"phantom_options": SITE, "phantom_seed": SEED, "num_train": options.num_real, **cache}
    folder = options.work / f"generator_{options.num_real}_{SEED}_{options.generator_steps}"
    steps = {"model": options.generator_steps, "guide": options.generator_steps // 2}
    own = generator(folder, data, steps, ids)
    wanted = {ARMS[arm].images for arm in options.arms} - {None}
    many = options.num_many // len(CLASSES) if "SYN_MANY" in wanted else each
    size = {key: value for key, value in cache.items() if key == "spatial_size"}
    jobs = {"SYN": (own, "none", many)}
    for name in ("free", "classifier", "both"):
        if f"SYN_{name.upper()}" in wanted:
            jobs[f"SYN_{name.upper()}"] = (own, name, each)
    if "SYN_OTHER" in wanted:
        jobs["SYN_OTHER"] = (Generator.of_bundle(), "none", each)
    made = Parallel(n_jobs=options.processes, prefer="threads")(
        delayed(store)(folder / f"store_{name}_{count}", source, guidance, count, size)
        for name, (source, guidance, count) in jobs.items()
    )
    every = dict(zip(jobs, map(Images.of, made), strict=True))
    synthetic = {**every, "SYN": subset(every["SYN"], each)}
    if "SYN_MANY" in wanted:
        synthetic["SYN_MANY"] = every["SYN"]
    if "SYN_FEW" in wanted:
        synthetic["SYN_FEW"] = subset(every["SYN"], options.num_few // len(CLASSES))
    told = ""
    if {"SYN_GOOD", "SYN_BAD"} & wanted:
        command = {"weights#model": own.model, "weights#guide": own.guide, **GUIDANCE["none"], "count": many}
        command |= {"phantom_options": SITE, "training_seed": SEED, "num_real": options.num_real, **cache}
        parts = filtered(made[0], command)
        images = {name: Images.of(part) for name, part in parts.items()}
        told = f" Filters keep {len(images['good'])} of {len(every['SYN'])}; as many good ones as bad ones are used."
        fewest = [min(int((part.label == one).sum()) for part in images.values()) for one in range(len(CLASSES))]
        for name, part in images.items():
            synthetic[f"SYN_{name.upper()}"] = subset(part, fewest)
    val, test = _planes("val", options.num_val, options), _planes("test", options.num_test, options)
    return Sets(train, val, test, synthetic), told


def add_options(parser: argparse.ArgumentParser, arms: Mapping[str, Arm], defaults: Mapping[str, Any]) -> None:
    """Add what both studies ask for."""
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=defaults["networks"])
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=500, help="gradient steps of every arm")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="0.0001 in the paper")
    parser.add_argument("--size", type=int, default=32, help="side of the images; 128 in the paper")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], help="id of the generator's train.json: ID=JSON"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--work", type=Path, default=defaults["work"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetalplanes", description=__doc__)
    add_options(parser, ARMS, DEFAULTS)
    parser.add_argument("--num-real", type=int, default=600, help="real training images; 9923 in the paper")
    parser.add_argument("--num-val", type=int, default=300, help="real images that ensembles learn from")
    parser.add_argument("--num-test", type=int, default=1000, help="2477 in the paper")
    parser.add_argument("--num-few", type=int, default=500)
    parser.add_argument("--num-synthetic", type=int, default=2000, help="of each set; 30000 in the paper")
    parser.add_argument("--num-many", type=int, default=8000, help="60000 in the paper")
    parser.add_argument("--generator-steps", type=int, default=2000, help="half as many for its guide")
    return parser


if __name__ == "__main__":
    main()
