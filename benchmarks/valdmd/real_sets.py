# SPDX-License-Identifier: Apache-2.0
"""Real chest radiographs, normal and with pneumonia: their split by subject, and the bundle's trainings on them."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.command_line import bundle_command
from benchmarks.labels import read_labels
from medcf.bundle import bundle_folder
from medcf.data.prepare import deal_folds

__all__ = ["CLASSES", "DEMO", "PROMPTS", "STEPS", "Step", "Trained", "at_most", "command", "prepare", "train"]

logger = logging.getLogger(__name__)

CLASSES = ("normal", "pneumonia")
#: Captions of the classes; the demo's text encoder knows all of their words.
PROMPTS = ("normal chest x-ray", "pneumonia")
#: Split of each fold of subjects. The judge learns from images of its own, ``test`` is explained, and ``val`` tells
#: whether a training went well.
FOLDS = ("train", "train", "train", "train", "oracle", "oracle", "val", "test")
COLUMNS = ("file", "case", "label", "subject", "split", "etiology")
#: What stays the phantoms': no real image has masks, and the weights of the text encoder belong to its vocabulary.
DEMO = ("segmenter.pt", "tokenizer.json")


@dataclass(frozen=True)
class Step:
    """A training: the bundle's configs, the ids that differ from them, and whether phantoms' weights are its start."""

    configs: tuple[str, ...]
    ids: dict[str, Any] = field(default_factory=dict)
    fine_tuned: bool = False


#: Trainings by the name of the weights that they give, in their order. The classifiers start anew: they have two
#: classes, not four.
STEPS = {
    "autoencoder": Step(
        ("train.json", "train_autoencoder.json"), {"iterations": 300, "learning_rate": 0.0005}, fine_tuned=True
    ),
    "classifier": Step(("train.json", "train_classifier.json"), {"iterations": 300}),
    "oracle": Step(("train.json", "train_classifier.json", "train_oracle.json"), {"iterations": 400}),
    "model": Step(
        ("train.json",), {"iterations": 1200, "learning_rate": 0.0003, "targets": ["label"]}, fine_tuned=True
    ),
    "novelty": Step(("inference.json", "calibrate.json")),
}


def at_most(iterations: int | None) -> dict[str, Step]:
    """Return the trainings cut to so many iterations, without the gate; None leaves them as they are."""
    if iterations is None:
        return STEPS
    short = {name: {"iterations": iterations} if "iterations" in step.ids else {} for name, step in STEPS.items()}
    short["model"] |= {"gate": False}
    return {name: replace(step, ids=step.ids | short[name]) for name, step in STEPS.items()}


@dataclass(frozen=True)
class Trained:
    """What trainings wrote.

    Attributes:
        table: the images with their classes and splits.
        models: folder of the weights.
        demo: folder of the weights from which they started.
    """

    table: Path
    models: Path
    demo: Path


def prepare(data: str | Path, table: Path, seed: int = 0) -> dict[str, int]:
    """Write the table of images for trainings and evaluation; no subject is in two splits.

    Args:
        data: folder with ``labels.csv`` (``file``, ``subject``, ``label_pneumonia`` of 0 or 1, and if known
            ``etiology``) and the images.
        table: CSV file to write.
        seed: seed of the split, which is stratified by class.

    Returns:
        Number of images by split and class.

    Raises:
        FileNotFoundError: there is no ``labels.csv``.
        ValueError: the table lacks a column that is needed.
    """
    data = Path(data).resolve()
    rows = read_labels(data, ("file", "subject", "label_pneumonia"))
    labels = [int(row["label_pneumonia"]) for row in rows]
    folds = deal_folds(labels, [row["subject"] for row in rows], len(FOLDS), seed)
    counts: Counter[str] = Counter()
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row, label, fold in zip(rows, labels, folds, strict=True):
            file = data / row["file"]
            cells = (CLASSES[label], row["subject"], FOLDS[fold], row.get("etiology", ""))
            writer.writerow([file, file.stem, *cells])
            counts[f"{FOLDS[fold]}, {CLASSES[label]}"] += 1
    return dict(counts)


def command(step: Step, name: str, trained: Trained, cache: Path) -> list[str]:
    """Return the command line of a training.

    Args:
        step: the training.
        name: name of its weights.
        trained: where it reads and writes.
        cache: folder of the images on the network's grid.
    """
    start = {"pretrained": trained.demo / f"{name}.pt"} if step.fine_tuned else {}
    ids = {
        "datalist": trained.table,
        "cache_dir": cache,
        "models_dir": trained.models,
        "output_dir": trained.models.parent / name,
        "export_path": trained.models / f"{name}.pt",
        "class_prompts": list(PROMPTS),
        **start,
        **step.ids,
    }
    return bundle_command("valdmd", step.configs, ids)


def train(table: Path, work: Path, steps: dict[str, Step] | None = None, threads: int = 1) -> Trained:
    """Train all networks; those that are trained already are kept, and a training that was killed goes on.

    All is in a folder named after what it depends on: the images, the demo's weights, and the trainings' options.

    Args:
        table: what `prepare` wrote.
        work: folder for weights, checkpoints and the cache.
        steps: the trainings, by default ``STEPS``.
        threads: threads of a training on a CPU.

    Raises:
        subprocess.CalledProcessError: a training failed; its message is on stderr.
    """
    steps = STEPS if steps is None else steps
    demo = bundle_folder("valdmd") / "models"
    models = work / _digest(table, demo, list(steps.items())) / "models"
    trained = Trained(table, models, demo)
    models.mkdir(parents=True, exist_ok=True)
    for name in DEMO:
        shutil.copyfile(demo / name, models / name)
    for name, step in steps.items():
        if (models / f"{name}.pt").is_file():
            logger.info("%s: trained already", name)
            continue
        line = command(step, name, trained, work / "cache")
        logger.info("%s: %s", name, " ".join(line))
        subprocess.run(line, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    return trained


def _digest(table: Path, demo: Path, steps: Sequence[tuple[str, Step]]) -> str:
    files = [table, *(demo / name for name in DEMO), *(demo / f"{name}.pt" for name, step in steps if step.fine_tuned)]
    configs = bundle_folder("valdmd") / "configs"
    files += [configs / name for name in sorted({config for _, step in steps for config in step.configs})]
    state = hashlib.sha256(json.dumps([(name, step.ids) for name, step in steps]).encode())
    for file in files:
        state.update(hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()[:12]
