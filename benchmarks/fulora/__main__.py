# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes of site A make a classifier of site B's images better? ``python -m benchmarks.fulora``.

Arms: real images of site A (ES), with augmentation (DA), with synthetic images beside them (HB), a few images of site B
(AF), and real images alone for as many gradient steps as with synthetic ones. Every arm is trained with every seed;
differences are between arms of the SAME network and seed. Finished trainings are kept (``--work``).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.command_line import setting
from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.tables import insert_or_write
from benchmarks.fulora.classifiers import CLASSIFIERS, create_classifier
from benchmarks.fulora.images import CLASSES, TESTED, Images, adapter, planes, synthetic
from benchmarks.fulora.training import Recipe, probabilities, scores, train
from medcf.runtime.atomic import write_csv, write_json

__all__ = ["ARMS", "Arm", "differences", "main"]

logger = logging.getLogger(__name__)

SCORES = ("accuracy", "precision", "recall", "f", "auc")
NUM_CLASSES = 6


@dataclass(frozen=True)
class Arm:
    """What a classifier is trained on.

    Attributes:
        label: how it reads.
        parts: sets of images: "ES", "AF" and names of synthetic sets.
        augmented: whether images are rotated and flipped.
        steps_of: parts whose number of images sets the number of gradient steps; None: its own.
    """

    label: str
    parts: tuple[str, ...]
    augmented: bool = False
    steps_of: tuple[str, ...] | None = None


#: "SYN" is the synthetic set of the adapter of site A.
ARMS: dict[str, Arm] = {
    "es": Arm("ES: real images of site A", ("ES",)),
    "es_da": Arm("ES + DA", ("ES",), augmented=True),
    "es_steps": Arm("ES, as many steps as HB", ("ES",), steps_of=("ES", "SYN")),
    "es_da_steps": Arm("ES + DA, as many steps as HB", ("ES",), augmented=True, steps_of=("ES", "SYN")),
    "hb": Arm("HB: ES and synthetic images", ("ES", "SYN")),
    "hb_da": Arm("HB + DA", ("ES", "SYN"), augmented=True),
    "syn": Arm("synthetic images alone", ("SYN",)),
    "af": Arm("AF: few images of site B", ("AF",)),
    "es_af": Arm("ES + AF", ("ES", "AF")),
    "hb_b": Arm("ES and synthetic images of an adapter of AF", ("ES", "SYN_B")),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment and write its tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    pools = _pools(options)
    test = planes("test", options.num_test, "B", options.size, options.work / "cache", seed=7, balance=TESTED)
    weights = dict(part.split("=", 1) for part in options.imagenet)
    recipe = Recipe(options.epochs, options.batch_size, options.learning_rate, options.device)
    rows = []
    for name in options.networks:
        for key in options.arms:
            for seed in range(options.seeds):
                found = _one(name, key, seed, pools, test, recipe, weights.get(name), options)
                rows.append({"network": name, "arm": key, "seed": seed, **found})
                logger.info("%s, %s, seed %d: accuracy %.3f", name, key, seed, found["accuracy"])
    write_csv(options.out / "fulora_study.csv", rows)
    run = describe_machine(options.device, options.threads)
    run += " Intervals: 95 %, Student's, over seeds. Command: "
    run += f"`{describe_command('benchmarks.fulora', arguments)}`; figures: `fulora_study.csv`."
    told = "ImageNet's weights for " + ", ".join(weights) if weights else "No weights of ImageNet: all from scratch"
    counts = ", ".join(f"{name} {len(images)}" for name, images in pools.items())
    text = f"{tables(rows)}\n\n{told}. Images: {counts}; test {len(test)}. {options.seeds} seeds. {run}"
    insert_or_write(options.out / "fulora.md", "study", text, "fulora_study", "FU-LoRA's experiment")
    sys.stdout.write(text + "\n")


def _pools(options: argparse.Namespace) -> dict[str, Images]:
    """Return the sets of images that the arms are made of."""
    ids, cache, size = dict(options.set), options.work / "cache", options.size
    wanted = {part for key in options.arms for part in (*ARMS[key].parts, *(ARMS[key].steps_of or ()))}
    pools = {"ES": planes("train", options.num_real, "A", size, cache, seed=11)}
    if "AF" in wanted:
        pools["AF"] = planes("train", options.num_few, "B", size, cache, seed=12)
    for name, site in (("SYN", "A"), ("SYN_B", "B")):
        if name in wanted:
            file = adapter(site, options.rank, options.work, ids)
            made = f"{name}_rank_{options.rank}"
            pools[name] = synthetic(made, options.num_synthetic // len(CLASSES), [file], options.work, ids)
    return pools


def _one(
    name: str,
    key: str,
    seed: int,
    pools: Mapping[str, Images],
    test: Images,
    recipe: Recipe,
    weights: str | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return the scores of one training, from the disk if it was done."""
    arm = ARMS[key]
    counts = {part: len(pools[part]) for part in (*arm.parts, *(arm.steps_of or ()))}
    question = {"recipe": asdict(recipe), "arm": asdict(arm), "counts": counts, "size": options.size}
    question |= {"rank": options.rank, "test": len(test), "weights": weights}
    file = options.work / "trainings" / f"{name.replace('/', '-')}_{key}_{seed}.json"
    asked = json.loads(json.dumps(question))
    if file.is_file() and (stored := json.loads(file.read_text(encoding="utf-8")))["question"] == asked:
        return dict(stored["scores"])
    torch.manual_seed(seed)
    network = create_classifier(name, NUM_CLASSES, options.size, weights)
    images = sum((pools[part] for part in arm.parts[1:]), start=pools[arm.parts[0]])
    steps = recipe.steps(sum(counts[part] for part in arm.steps_of or arm.parts))
    train(network, images, steps, recipe, augmented=arm.augmented, seed=seed)
    found = {**scores(probabilities(network, test.image, recipe.device), test.label), "steps": steps}
    write_json(file, {"question": asked, "scores": found})
    return found


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean over seeds and Student's interval; NaN bounds with fewer than two."""
    data = np.asarray(values, float)
    if len(data) < 2:
        return float(data.mean()), float("nan"), float("nan")
    half = student.ppf((1 + confidence) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data))
    return float(data.mean()), float(data.mean() - half), float(data.mean() + half)


def differences(rows: Sequence[Mapping[str, Any]], score: str, base: str) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return by network and arm the difference of a score from another arm's, paired by seed, with its interval."""
    known = {(row["network"], row["arm"], row["seed"]): row[score] for row in rows}
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for network, arm in dict.fromkeys((row["network"], row["arm"]) for row in rows):
        seeds = [seed for (n, a, seed) in known if (n, a) == (network, arm) and (network, base, seed) in known]
        if arm != base and seeds:
            found[network, arm] = mean_interval([known[network, arm, s] - known[network, base, s] for s in seeds])
    return found


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores of every network and arm, and the differences that a claim may rest on."""
    lines = ["| network | trained on | steps | " + " | ".join(f"{score} ↑" for score in SCORES) + " |"]
    lines.append("|" + " --- |" * (len(SCORES) + 3))
    for network, arm in dict.fromkeys((row["network"], row["arm"]) for row in rows):
        members = [row for row in rows if (row["network"], row["arm"]) == (network, arm)]
        cells = [_cell(mean_interval([row[score] for row in members])) for score in SCORES]
        lines.append(f"| {network} | {ARMS[arm].label} | {members[0]['steps']} | {' | '.join(cells)} |")
    pairs = (("hb", "es"), ("hb", "es_steps"), ("hb_da", "es_da"), ("hb_da", "es_da_steps"), ("hb_b", "es_af"))
    lines += ["", "| same network, same seeds | accuracy | AUC |", "| --- | --- | --- |"]
    for arm, base in pairs:
        found = {score: differences(rows, score, base) for score in ("accuracy", "auc")}
        for network in dict.fromkeys(row["network"] for row in rows):
            if (network, arm) in found["accuracy"]:
                cells = [_cell(found[score][network, arm], sign="+") for score in ("accuracy", "auc")]
                lines.append(f"| {network}: {ARMS[arm].label} minus {ARMS[base].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(interval: Sequence[float], sign: str = "") -> str:
    mean, low, high = interval
    if not np.isfinite(low):
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fulora", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=CLASSIFIERS, default=["ResNet18", "MobileNetV2"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="20 in the paper")
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=0.01, help="0.001 in the paper, from ImageNet's weights")
    parser.add_argument("--size", type=int, default=64, help="side of the images; the generator's")
    parser.add_argument("--num-real", type=int, default=350, help="real images of site A; 6148 in the paper")
    parser.add_argument("--num-few", type=int, default=100, help="images of site B")
    parser.add_argument("--num-synthetic", type=int, default=700, help="5000 in the paper")
    parser.add_argument("--num-test", type=int, default=240, help="233 in the paper")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters: 8, 32 or 128 in the paper")
    parser.add_argument("--imagenet", nargs="+", default=[], metavar="NETWORK=FILE", help="first weights, by network")
    parser.add_argument("--set", type=setting, action="append", default=[], help="id of fulora's configs: ID=JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks/fulora"))
    return parser


if __name__ == "__main__":
    main()
