# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes of site A make a classifier of site B's images better? ``python -m benchmarks.fulora``.

Arms: real images of site A (ES), with augmentation (DA), with synthetic images beside them (HB), a few images of site B
(AF), and real images alone for as many gradient steps as with synthetic ones. Synthetic images are of adapters of
three ranks, or of the base model without one. Every arm is trained with every seed; differences are between arms of the
SAME network and seed. What is done is kept (``--work``), and several commands may share it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.tables import insert_or_write
from benchmarks.fulora.images import (
    CLASSES,
    SEEDS,
    TESTED,
    Generator,
    Images,
    generate_all,
    model_folder,
    phantom_adapter,
    planes,
    synthetic,
)
from benchmarks.fulora.study import Arm, add_options, trained, wanted
from benchmarks.fulora.tables import difference_table, score_table
from benchmarks.fulora.training import scores
from medcf.runtime.atomic import write_csv

__all__ = ["ARMS", "PAIRS", "main"]

logger = logging.getLogger("benchmarks.fulora")

HYBRID = ("ES", "SYN")
#: "SYN" and the like are synthetic sets, see `Generator`; each has as many images as the others.
ARMS: dict[str, Arm] = {
    "es": Arm("ES: real images of site A", ("ES",)),
    "es_da": Arm("ES + DA", ("ES",), augmented=True),
    "es_steps": Arm("ES, as many steps as HB", ("ES",), steps_of=HYBRID),
    "es_da_steps": Arm("ES + DA, as many steps as HB", ("ES",), augmented=True, steps_of=HYBRID),
    "hb": Arm("HB: ES and synthetic images", HYBRID),
    "hb_da": Arm("HB + DA, rank 8", HYBRID, augmented=True),
    "hb_da_32": Arm("HB + DA, rank 32", ("ES", "SYN_32"), augmented=True),
    "hb_da_128": Arm("HB + DA, rank 128", ("ES", "SYN_128"), augmented=True),
    "hb_da_base": Arm("HB + DA, no adapter", ("ES", "SYN_BASE"), augmented=True),
    "syn": Arm("synthetic images alone", ("SYN",)),
    "af": Arm("AF: few images of site B", ("AF",)),
    "es_af": Arm("ES + AF", ("ES", "AF")),
    "hb_b": Arm("ES and synthetic images of an adapter of AF", ("ES", "SYN_B")),
}
PAIRS = (
    *(("hb", "es"), ("hb", "es_steps"), ("hb_da", "es_da")),
    *((arm, "es_da_steps") for arm in ("hb_da", "hb_da_32", "hb_da_128", "hb_da_base")),
    *(("hb_da", "hb_da_base"), ("hb_b", "es_af")),
)
#: All but two that cost much and say little more.
DEFAULTS = {
    "networks": ["ResNet18", "MobileNetV2"],
    "arms": [key for key in ARMS if key not in ("es_steps", "syn")],
    "epochs": 8,
    "work": Path("output/benchmarks/fulora"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment and write its tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    shown = ("ES", "SYN", "SYN_B") if options.tsne else ()
    pools = _pools(list(dict.fromkeys([*wanted(ARMS, options.arms), *shown])), options)
    test = planes("test", options.num_test, "B", options.size, options.work / "cache", seed=7, balance=TESTED)
    run = describe_machine(options.device, options.threads * options.processes)
    run += f" Command: `{describe_command('benchmarks.fulora', arguments)}`"
    text = f"{_trained(pools, test, options)} {run}; figures: `fulora_study.csv`."
    if options.tsne:
        text += f"\n\n{_tsne(pools, test, options)}"
    insert_or_write(options.out / "fulora.md", "study", text, "fulora_study", "FU-LoRA's experiment")
    sys.stdout.write(text + "\n")


def _trained(pools: Mapping[str, Images], test: Images, options: argparse.Namespace) -> str:
    """Train all, write the CSV, and return the tables."""
    weights = [part.partition("=")[0] for part in options.imagenet]
    rows = [
        {"network": result.network, "arm": result.arm, "seed": result.seed, "steps": result.steps}
        | scores(result.probabilities, test.label)
        for result in trained(ARMS, pools, test, options)
    ]
    write_csv(options.out / "fulora_study.csv", rows)
    told = "ImageNet's weights for " + ", ".join(weights) if weights else "No weights of ImageNet: all from scratch"
    counts = ", ".join(f"{name} {len(images)}" for name, images in pools.items())
    told += f". Images: {counts}; test {len(test)}. {options.seeds} seeds. Intervals: 95 %, Student's, over seeds."
    return f"{tables(rows)}\n\n{told}"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores of every network and arm, and the differences that a claim may rest on."""
    labels = {key: arm.label for key, arm in ARMS.items()}
    return f"{score_table(rows, labels)}\n\n{difference_table(rows, labels, PAIRS)}"


def _pools(parts: Sequence[str], options: argparse.Namespace) -> dict[str, Images]:
    """Return the sets of images that the arms are made of."""
    ids, size, cache = dict(options.set), options.size, options.work / "cache"
    pools = {}
    if "ES" in parts:
        pools["ES"] = planes("train", options.num_real, "A", size, cache, SEEDS["A"])
    if "AF" in parts:
        pools["AF"] = planes("train", options.num_few, "B", size, cache, SEEDS["B"])

    def draw(part: str) -> Images:
        made, folder, adapters = Generator.of(part), model_folder(options.work, ids), []
        count = options.num_synthetic // len(CLASSES)
        seen = options.num_few if made.site == "B" else min(options.num_adapter, options.num_real)
        if made.site is not None:
            adapters.append(phantom_adapter(made.site, made.rank, seen, options.views, folder, ids))
        return synthetic(folder / f"store_{part}_{seen}_{options.views}_{count}", count, adapters, ids)

    jobs = {part: partial(draw, part) for part in parts if part not in ("ES", "AF")}
    return {**pools, **generate_all(jobs, options.processes)}


def _tsne(pools: Mapping[str, Images], test: Images, options: argparse.Namespace) -> str:
    """Draw the features of real and synthetic images, and return the picture with its caption."""
    from benchmarks.fulora.tsne import draw_sets

    sets = {"real, site A": pools["ES"], "real, site B": test}
    sets |= {"synthetic, site A": pools["SYN"], "synthetic, site B": pools["SYN_B"]}
    caption = draw_sets(options.tsne, sets, dict(options.set))
    return f"![{caption.partition('.')[0]}]({options.tsne.name})\n\n{caption}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fulora", description=__doc__)
    add_options(parser, ARMS, DEFAULTS)
    parser.add_argument("--num-real", type=int, default=200, help="real images of site A; 6148 in the paper")
    parser.add_argument("--num-adapter", type=int, default=100, help="of them, those that adapters are trained on")
    parser.add_argument("--num-few", type=int, default=100, help="images of site B, for classifiers and its adapter")
    parser.add_argument("--num-synthetic", type=int, default=400, help="of each synthetic set; 5000 in the paper")
    parser.add_argument("--num-test", type=int, default=240, help="233 in the paper")
    parser.add_argument("--tsne", type=Path, metavar="PNG", help="also draw the features of real and synthetic images")
    return parser


if __name__ == "__main__":
    main()
