# SPDX-License-Identifier: Apache-2.0
"""Do synthetic planes help on real ones? ``python -m benchmarks.fetalplanes.real --data FOLDER``.

FOLDER has ``labels.csv`` (file, subject, source, plane, country) and the images. Subjects are dealt into training,
validation and test. The generator goes on from the bundle's weights, which saw phantoms alone, with the training
subjects' images. What is done is kept (``--work``).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.tables import insert_or_write
from benchmarks.fetalplanes.__main__ import ARMS as EVERY
from benchmarks.fetalplanes.__main__ import add_options, report
from benchmarks.fetalplanes.sets import Generator, generator, store
from benchmarks.fetalplanes.study import Arm, Sets
from benchmarks.fulora.images import Images
from benchmarks.fulora.real_sets import LABELS, Plane, african, load, read_planes, spanish
from medcf.data.prepare import deal_folds
from medcf.runtime.atomic import write_csv

__all__ = ["ARMS", "deal", "main"]

NAMES = ("real", "traditional", "synthetic", "mixed", "pretrained", "pretrained_traditional", "final", "classifier")
ARMS: dict[str, Arm] = {
    **{name: EVERY[name] for name in NAMES},
    "phantoms": Arm("synthetic (generator of phantoms alone), then real", "pretrained", "SYN_PHANTOMS"),
}
PAIRS = (
    *((arm, "real") for arm in ("traditional", "synthetic", "mixed", "pretrained", "phantoms")),
    *(("pretrained", "traditional"), ("final", "traditional"), ("final", "pretrained_traditional")),
    *(("classifier", "pretrained"), ("phantoms", "pretrained")),
)
SHOWN = ("real", "traditional", "synthetic", "pretrained", "final")
DEFAULTS = {"networks": ["SonoNet-16"], "work": Path("output/benchmarks/fetalplanes_real")}
#: Tenths of the subjects.
SPLITS = ("train",) * 5 + ("val",) * 2 + ("test",) * 3


def main(arguments: list[str] | None = None) -> None:
    """Run the study and write its tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    planes = read_planes(options.data)
    parts = deal([*spanish(planes)[0], *african(planes)])
    images = {name: load(members, options.size) for name, members in parts.items()}
    sets = Sets(images["train"], images["val"], images["test"], _synthetic(parts, options))
    text = report(ARMS, PAIRS, SHOWN, sets, options, "fetalplanes_real")
    counts = {name: (len(members), len({plane.subject for plane in members})) for name, members in parts.items()}
    told = (f"{name}: {count} images of {people} subjects" for name, (count, people) in counts.items())
    text += "\n\n" + "; ".join(told)
    run = describe_machine(options.device, options.threads * options.processes)
    text += f". {run} Command: `{describe_command('benchmarks.fetalplanes.real', arguments)}`."
    title = "Diffusion augmentation's study on real planes"
    insert_or_write(options.out / "fetalplanes.md", "real", text, "fetalplanes_real", title)
    sys.stdout.write(text + "\n")


def deal(planes: Sequence[Plane], seed: int = 0) -> dict[str, list[Plane]]:
    """Deal subjects into training, validation and test, each with about the same share of every class."""
    folds = deal_folds([plane.label for plane in planes], [plane.subject for plane in planes], len(SPLITS), seed)
    parts: dict[str, list[Plane]] = {"train": [], "val": [], "test": []}
    for plane, fold in zip(planes, folds, strict=True):
        parts[SPLITS[fold]].append(plane)
    return parts


def _synthetic(parts: dict[str, list[Plane]], options: argparse.Namespace) -> dict[str, Images]:
    """Train the generator on the training images, and return the sets of the arms."""
    ids, folder = dict(options.set), options.work / f"generator_{options.generator_steps}"
    rows = [
        {"file": str(plane.file.resolve()), "label": plane.label, "subject": plane.subject, "split": name}
        for name in ("train", "val")
        for plane in parts[name]
    ]
    write_csv(folder / "datalist.csv", rows)
    size = {"spatial_size": [options.size, options.size]}
    base = Generator.of_bundle()
    data = {"datalist": (folder / "datalist.csv").resolve(), "pretrained": base.model.resolve(), "learning_rate": 2e-4}
    data |= {"cache_dir": (folder / "cache").resolve(), **size}
    steps = {"model": options.generator_steps, "guide": options.generator_steps}
    own = generator(folder.resolve(), data, steps, ids)
    each, classes = options.num_synthetic // len(LABELS), {"classes": sorted(LABELS.values()), **size}
    jobs = {"SYN": (own, "none"), "SYN_CLASSIFIER": (own, "classifier"), "SYN_PHANTOMS": (base, "none")}
    wanted = {ARMS[arm].images for arm in options.arms}
    return {
        name: Images.of(store(folder / f"store_{name}_{each}", source, guidance, each, classes))
        for name, (source, guidance) in jobs.items()
        if name in wanted
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetalplanes.real", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with labels.csv and the images")
    add_options(parser, ARMS, DEFAULTS)
    parser.add_argument("--num-synthetic", type=int, default=1000, help="of each set; 30000 in the paper")
    parser.add_argument("--generator-steps", type=int, default=500, help="of the generator, and of its guide")
    return parser


if __name__ == "__main__":
    main()
