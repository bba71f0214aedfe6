# SPDX-License-Identifier: Apache-2.0
"""Real brain volumes: the data sets, their split by subject, and the bundle's trainings on them."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command_line import bundle_command
from benchmarks.labels import read_labels
from medcf.data.prepare import deal_folds

__all__ = ["FOLDS", "SETS", "RealSet", "Step", "command", "prepare", "prepared", "train"]

FOLDS = 4  # the first is trained on by nothing and explained
COLUMNS = ("file", "label", "subject", "split", "segmentation")


@dataclass(frozen=True)
class Step:
    """A training: the bundle's configs, and the ids that differ from them."""

    configs: tuple[str, ...]
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RealSet:
    """A labeled set of volumes.

    Attributes:
        label: column of ``labels.csv`` with the class.
        overlay: config over ``inference.json``.
        classes: names of the classes 0 and 1.
        grid: ids of the network's grid, for the trainings.
        steps: trainings by the name of the weights they give.
        segmentation: column with the structure's segmentation, if there is one.
    """

    label: str
    overlay: str
    classes: tuple[str, str]
    steps: dict[str, Step]
    grid: dict[str, Any] = field(default_factory=dict)
    segmentation: str | None = None


_CLASSIFIER = ("train.json", "train_classifier.json", "real_classifier.json")
_JUDGE = ("train.json", "train_classifier.json", "train_oracle.json", "real_classifier.json")
_MODEL = ("train.json", "real_diffusion.json")
# no change of size where size is the class
_SIZE = {"augmentation#transforms#2#scale_range": [0.0, 0.0, 0.0]}

SETS = {
    "t1": RealSet(
        "label_high_deep_csf",
        "real_t1.json",
        ("low deep CSF", "high deep CSF"),
        {
            "classifier": Step(_CLASSIFIER),
            "judge": Step(
                _JUDGE,
                {
                    "pretrained": "$@bundle_root + '/models/oracle.pt'",
                    "learning_rate": 0.001,
                    "train#dataset#split": "train",
                },
            ),
            "model": Step(_MODEL),
        },
    ),
    "hippocampus": RealSet(
        "label_large",
        "real_hippocampus.json",
        ("small hippocampus", "large hippocampus"),
        {
            # the phantoms show whole brains at 4 mm: nothing to start from
            "classifier": Step(_CLASSIFIER, {"pretrained": "", "learning_rate": 0.03, "iterations": 500, **_SIZE}),
            "judge": Step(
                _JUDGE,
                {"pretrained": "", "learning_rate": 0.002, "iterations": 500, "train#dataset#split": "train", **_SIZE},
            ),
            "segmenter": Step(
                ("train.json", "train_evaluation_segmenter.json"),
                {
                    "train#dataset#split": "train",
                    "network_def#out_channels": 3,
                    "iterations": 500,
                    "learning_rate": 0.004,
                },
            ),
            "model": Step(_MODEL, {"augmentation#transforms#1#scale_range": [0.0, 0.0, 0.0]}),
        },
        grid={"spatial_size": [32, 48, 32], "spacing": 1.0},
        segmentation="mask",
    ),
}


def prepare(data: str | Path, out: str | Path, real: RealSet, seed: int = 0) -> dict[str, int]:
    """Write ``volumes.csv``, the datalist of trainings and evaluation.

    A quarter of the subjects, stratified by class, are of the split ``val``: no network is trained on them, and their
    volumes are explained. The others are of ``train``.

    Args:
        data: folder with ``labels.csv`` (``file``, ``subject``, the set's label and segmentation) and the volumes.
        out: folder of the table.
        real: which set.
        seed: seed of the split.

    Returns:
        Number of volumes by split and class.

    Raises:
        FileNotFoundError: there is no ``labels.csv``.
        ValueError: the table lacks a column that is needed.
    """
    data, out = Path(data).resolve(), Path(out)
    rows = read_labels(data, {"file", "subject", real.label, real.segmentation or "file"})
    labels = [int(row[real.label]) for row in rows]
    folds = deal_folds(labels, [row["subject"] for row in rows], FOLDS, seed)
    counts: dict[str, int] = {}
    out.mkdir(parents=True, exist_ok=True)
    with (out / "volumes.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row, label, fold in zip(rows, labels, folds, strict=True):
            split = "train" if fold else "val"
            segmentation = data / row[real.segmentation] if real.segmentation else ""
            writer.writerow([data / row["file"], label, row["subject"], split, segmentation])
            key = f"{split}, {real.classes[label]}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def prepared(out: Path) -> Path:
    """Return the table of `prepare`.

    Raises:
        FileNotFoundError: it has not been run.
    """
    if not (out / "volumes.csv").is_file():
        raise FileNotFoundError(f"{out / 'volumes.csv'} does not exist: run the step prepare first.")
    return out / "volumes.csv"


def command(real: RealSet, step: str, out: Path, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Return the command line of a training.

    Args:
        real: which set.
        step: name of the weights.
        out: folder that `prepare` wrote into; weights go to its ``models``.
        changes: further ids.
    """
    ids = {
        "datalist": out / "volumes.csv",
        "cache_dir": out / "cache",
        "output_dir": out / step,
        "export_path": out / "models" / f"{step}.pt",
        **real.grid,
        **real.steps[step].overrides,
        **(changes or {}),
    }
    return bundle_command("controlcg", real.steps[step].configs, ids)


def train(real: RealSet, step: str, out: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Run a training.

    Raises:
        FileNotFoundError: `prepare` has not been run.
        subprocess.CalledProcessError: the training failed; its message is on stderr.
    """
    prepared(out)
    (out / "models").mkdir(exist_ok=True)
    subprocess.run(command(real, step, out, changes), check=True)
