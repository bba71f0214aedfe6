# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes help on real ones? ``python -m benchmarks.fulora.real --data FOLDER``.

``africa``: classifiers trained on Spanish images are tested on African ones. ``countries``: classifiers trained on four
African countries are tested on the fifth. The adapter is trained on the Spanish images, or on a fold's own
(``--fold-adapters``). FOLDER has ``labels.csv`` (file, subject, source, plane, country) and the images. What is done is
kept (``--work``).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.tables import insert_or_write
from benchmarks.fulora.images import CLASSES, Images, model_folder, synthetic
from benchmarks.fulora.real_sets import Plane, african, load, own_adapter, read_planes, spanish, without
from benchmarks.fulora.study import Arm, Result, add_options, trained, wanted
from benchmarks.fulora.tables import difference_table, score_table
from benchmarks.fulora.training import scores
from medcf.runtime.atomic import write_csv

__all__ = ["ARMS", "POOLED", "main", "rows_by_country"]

logger = logging.getLogger("benchmarks.fulora.real")

HYBRID = ("ES", "SYN")
ARMS: dict[str, Arm] = {
    "es": Arm("real images", ("ES",)),
    "es_da": Arm("real + DA", ("ES",), augmented=True),
    "es_da_steps": Arm("real + DA, as many steps as HB", ("ES",), augmented=True, steps_of=HYBRID),
    "hb_da": Arm("HB + DA", HYBRID, augmented=True),
    "hb_da_base": Arm("HB + DA, no adapter", ("ES", "SYN_BASE"), augmented=True),
}
PAIRS = (("hb_da", "es_da"), ("hb_da", "es_da_steps"), ("hb_da_base", "es_da_steps"), ("hb_da", "hb_da_base"))
POOLED = "all"
PARTS = {"africa": "Spanish images → African ones", "countries": "Four African countries → the fifth"}
DEFAULTS = {
    "networks": ["ResNet18"],
    "arms": list(ARMS),
    "epochs": 15,
    "work": Path("output/benchmarks/fulora_real"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the study and write its tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    planes, labels = read_planes(options.data), {key: arm.label for key, arm in ARMS.items()}
    texts, rows = [], []
    for part in options.parts:
        found = [{"part": part, **row} for row in (_africa if part == "africa" else _countries)(planes, options)]
        pooled = [row for row in found if row["images"] == POOLED]
        told = f"{score_table(pooled, labels)}\n\n{difference_table(found, labels, PAIRS)}"
        texts.append(f"**{PARTS[part]}**\n\n{told}")
        rows += found
    write_csv(options.out / "fulora_real.csv", rows)
    run = describe_machine(options.device, options.threads * options.processes)
    run += f" Command: `{describe_command('benchmarks.fulora.real', arguments)}`; figures: `fulora_real.csv`."
    told = f"Spain: {_count(spanish(planes)[0])}; Africa: {_count(african(planes))}. {options.seeds} seeds; intervals: "
    told += "95 %, Student's, over seeds: they do not say how much other images would change. Of the fifth country, "
    told += '"all" pools the predictions of the classifiers that did not see an image\'s country.'
    text = "\n\n".join([*texts, f"{told} {run}"])
    insert_or_write(options.out / "fulora.md", "real", text, "fulora_real", "FU-LoRA's experiment on real planes")
    sys.stdout.write(text + "\n")


def rows_by_country(results: Sequence[Result], planes: Sequence[Plane]) -> list[dict[str, Any]]:
    """Score the predictions of all images, and of each country's.

    Args:
        results: their probabilities are in the order of ``planes``.
        planes: the test set.
    """
    truth, rows = torch.tensor([plane.label for plane in planes]), []
    for result in results:
        told = {"network": result.network, "arm": result.arm, "seed": result.seed, "steps": result.steps}
        for country in (POOLED, *sorted({plane.country for plane in planes})):
            chosen = [index for index, plane in enumerate(planes) if country in (POOLED, plane.country)]
            subjects = len({planes[index].subject for index in chosen})
            counts = {"images": country, "num_images": len(chosen), "num_subjects": subjects}
            rows.append({**told, **counts, **scores(result.probabilities[chosen], truth[chosen])})
    return rows


def _africa(planes: Sequence[Plane], options: argparse.Namespace) -> list[dict[str, Any]]:
    train, test = spanish(planes)[0], african(planes)
    return rows_by_country(_results("africa", train, test, _synthetic(planes, options), options), test)


def _countries(planes: Sequence[Plane], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Test every country's images with classifiers that saw none of it, and put the predictions together."""
    members, tested, parts = african(planes), [], []
    for country in sorted({plane.country for plane in members}):
        train, test = without(members, country)
        made = _synthetic(planes, options, country if options.fold_adapters else None)
        parts.append(_results(f"countries_{country}", train, test, made, options))
        tested += test
    pooled = [
        Result(*_asked(fold[0]), max(one.steps for one in fold), torch.cat([one.probabilities for one in fold]))
        for fold in zip(*parts, strict=True)
    ]
    return rows_by_country(pooled, tested)


def _results(
    name: str, train: Sequence[Plane], test: Sequence[Plane], made: dict[str, Images], options: argparse.Namespace
) -> list[Result]:
    logger.info("%s: %s to train on, %s to test", name, _count(train), _count(test))
    return trained(ARMS, {"ES": load(train, options.size), **made}, load(test, options.size), options, name)


def _synthetic(planes: Sequence[Plane], options: argparse.Namespace, country: str | None = None) -> dict[str, Images]:
    """Draw the synthetic sets: of the adapter of the Spanish images or of all countries but one, and of the base."""
    ids, made = dict(options.set), {}
    folder = model_folder(options.work, ids)
    count = options.num_synthetic // len(CLASSES)
    parts = wanted(ARMS, options.arms)
    if "SYN" in parts:
        train, val = spanish(planes)
        name = "spain"
        if country is not None:
            train, name = without(african(planes), country)[0], f"without_{country}"
        file = own_adapter(name, train, val, folder, options.views, options.rank, ids)
        store = folder / f"store_{name}_{options.rank}_{options.views}_{count}"
        made["SYN"] = synthetic(store, count, [file], ids)
    if "SYN_BASE" in parts:
        made["SYN_BASE"] = synthetic(folder / f"store_base_{count}", count, [], ids)
    return made


def _asked(result: Result) -> tuple[str, str, int]:
    return result.network, result.arm, result.seed


def _count(planes: Sequence[Plane]) -> str:
    return f"{len(planes)} images of {len({plane.subject for plane in planes})} subjects"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fulora.real", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and the images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add_options(parser, ARMS, DEFAULTS)
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--num-synthetic", type=int, default=200, help="of each synthetic set; 5000 in the paper")
    parser.add_argument("--fold-adapters", action="store_true", help="an adapter for each fold, of its own countries")
    return parser


if __name__ == "__main__":
    main()
