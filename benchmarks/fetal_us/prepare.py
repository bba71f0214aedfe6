# SPDX-License-Identifier: Apache-2.0
"""Tables for the bundle's training configs, from a folder of real planes with a ``labels.csv``.

The trans-thalamic plane, on which the head circumference is measured, stands in for the standard plane (label 1), the
trans-ventricular and the trans-cerebellum plane for the non-standard one (label 0). No subject occurs in two splits.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.labels import read_labels
from medcf.data.prepare import deal_folds

__all__ = ["SPLITS", "TABLES", "fold_of_subject", "prepare"]

logger = logging.getLogger(__name__)

Row = dict[str, str]

COLUMNS = ("file", "mask", "mask_kind", "subject", "label_brain", "label_hc_plane")
FOLDS = 5
VALIDATION_FOLD = 0
#: The explained classifier and its judge leave out different subjects, in addition to those of the validation.
SPLITS = {"planes": {0: "val", 4: "test"}, "judge": {0: "val", 1: "test"}}
TABLES = {
    "planes": ("file", "case", "label", "subject", "split"),
    "judge": ("file", "case", "label", "subject", "split"),
    "brain": ("file", "case", "label", "subject", "split"),
    "head": ("file", "case", "mask", "subject", "split"),
    "inputs": ("file", "case", "label", "subject", "split"),
}


def fold_of_subject(rows: Iterable[Mapping[str, str]], seed: int = 0) -> dict[str, int]:
    """Deal the subjects of the labeled planes into folds with about the same share of each label.

    Args:
        rows: rows of the labels table; those without ``label_hc_plane`` do not take part.
        seed: seed of the dealing.

    Returns:
        Subject to fold, 0 to 4.
    """
    labeled = [row for row in rows if row["label_hc_plane"] != ""]
    labels = [int(float(row["label_hc_plane"])) for row in labeled]
    subjects = [row["subject"] for row in labeled]
    return dict(zip(subjects, deal_folds(labels, subjects, FOLDS, seed), strict=True))


def prepare(data: str | Path, out: str | Path, seed: int = 0) -> dict[str, int]:
    """Write the tables and the head masks.

    ``planes.csv``: labeled planes for the explained classifier. ``judge.csv``: the same with other training subjects,
    for the independent classifier. ``brain.csv``: for the diffusion model, every brain plane of everybody outside of
    the validation, whatever its source, the label empty where it is unknown; the validation's labeled planes as
    ``val``. ``head.csv`` and ``masks/``: heads (1) against the rest (0) for the segmenter. ``inputs.csv``: the
    validation planes with label 0, whose counterfactuals are asked for.

    Args:
        data: folder with ``labels.csv``, ``images`` and ``masks``.
        out: folder for the tables.
        seed: seed of the split.

    Returns:
        Number of rows by table and split.
    """
    data, out = Path(data).resolve(), Path(out)
    rows = read_labels(data, COLUMNS)
    folds = fold_of_subject(rows, seed)
    held_out = {subject for subject, fold in folds.items() if fold == VALIDATION_FOLD}
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    for row in rows:
        subject, label = row["subject"], row["label_hc_plane"]
        # the table may write whole numbers as 1.0
        label = str(int(float(label))) if label else ""
        # the case seeds the noise: it must not depend on where the folder lies
        entry = {"file": str(data / row["file"]), "case": Path(row["file"]).stem, "label": label, "subject": subject}
        split = "val" if subject in held_out else "train"
        if label:
            for name in ("planes", "judge"):
                tables[name].append({**entry, "split": SPLITS[name].get(folds[subject], "train")})
        if label == "0" and split == "val":
            tables["inputs"].append({**entry, "split": split})
        if row["label_brain"] and int(float(row["label_brain"])) == 1 and (split == "train" or label):
            tables["brain"].append({**entry, "split": split})
        if "head" in row["mask_kind"].split("+"):
            mask = _write_head_mask(data / row["mask"], out / "masks" / Path(row["mask"]).name)
            tables["head"].append({**entry, "mask": str(mask), "split": split})
    _move_heads(tables["head"], held_out)
    out.mkdir(parents=True, exist_ok=True)
    for name, columns in TABLES.items():
        _write_table(out / f"{name}.csv", columns, tables[name])
    return {
        f"{name} {split}": count
        for name, entries in tables.items()
        for split in ("train", "val", "test")
        if (count := sum(entry["split"] == split for entry in entries))
    }


def _move_heads(entries: list[Row], held_out: set[str], every: int = 10) -> None:
    """Give the segmenter's validation every tenth subject too: few of those held out have a mask."""
    others = sorted({entry["subject"] for entry in entries} - held_out)
    chosen = set(others[::every])
    for entry in entries:
        if entry["subject"] in chosen:
            entry["split"] = "val"


def _write_head_mask(source: Path, target: Path) -> Path:
    """Write a mask of the filled head: every annotated structure lies inside of it."""
    with Image.open(source) as image:
        head = (np.asarray(image.convert("L")) > 0).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(head).save(target)
    return target.resolve()


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
