# SPDX-License-Identifier: Apache-2.0
"""Real planes of the study: read from ``labels.csv``, split by subject and country, and put onto the bundle's grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from benchmarks.fulora.images import Images, adapter
from benchmarks.labels import read_labels
from medcf.bundle import bundle_folder
from medcf.data.case import as_case
from medcf.runtime.atomic import write_csv

__all__ = ["LABELS", "Plane", "african", "load", "own_adapter", "read_planes", "spanish", "without"]

#: The bundle's class of each plane; no image here shows a cervix.
LABELS = {"Fetal abdomen": 0, "Fetal brain": 1, "Fetal femur": 2, "Fetal thorax": 3, "Other": 5}
BRAIN = LABELS["Fetal brain"]
MOST = 20


@dataclass(frozen=True)
class Plane:
    """A real image: its file, whose it is, from which set and country, and the bundle's class."""

    file: Path
    subject: str
    source: str
    country: str
    label: int


def read_planes(data: Path) -> list[Plane]:
    """Read ``labels.csv``; rows of other planes are left out."""
    rows = read_labels(data, ("file", "subject", "source", "plane", "country"))
    return [
        Plane(data / row["file"], row["subject"], row["source"], row["country"], LABELS[row["plane"]])
        for row in rows
        if row["plane"] in LABELS
    ]


def spanish(planes: Sequence[Plane], most: int = MOST) -> tuple[list[Plane], list[Plane]]:
    """Return the Spanish training images, and as many other brains for an adapter's validation.

    Nearly all Spanish images show brains: at most ``most`` of them are taken, one of each subject, whichever have the
    smallest hashes. The other brains are of subjects that no training image shows.
    """
    members = [plane for plane in planes if plane.source == "FETAL_PLANES_DB"]
    others = [plane for plane in members if plane.label != BRAIN]
    first: dict[str, Plane] = {}
    for plane in sorted((plane for plane in members if plane.label == BRAIN), key=_hash):
        first.setdefault(plane.subject, plane)
    brains = list(first.values())
    chosen, seen = others + brains[:most], {plane.subject for plane in others}
    spare = [plane for plane in brains[most:] if plane.subject not in seen]
    return chosen, spare[:most]


def african(planes: Sequence[Plane]) -> list[Plane]:
    """Return all African images."""
    return [plane for plane in planes if plane.source == "AFRICAN_PLANES"]


def without(planes: Sequence[Plane], country: str) -> tuple[list[Plane], list[Plane]]:
    """Return the images of the other countries, and those of one.

    Raises:
        ValueError: if a subject is on both sides.
    """
    train = [plane for plane in planes if plane.country != country]
    test = [plane for plane in planes if plane.country == country]
    if both := {plane.subject for plane in train} & {plane.subject for plane in test}:
        raise ValueError(f"{len(both)} subjects are from {country} and from elsewhere, for example {min(both)}.")
    return train, test


def load(planes: Sequence[Plane], size: int) -> Images:
    """Read images as the bundle does: overlays removed, on its grid; each file once, whatever the number of folds."""
    return Images(
        torch.stack([_read(plane.file, size) for plane in planes]), torch.tensor([plane.label for plane in planes])
    )


@cache
def _read(file: Path, size: int) -> torch.Tensor:
    return _preprocessing(size)(as_case(file).item())["image"].as_subclass(torch.Tensor)


@cache
def _preprocessing(size: int) -> Any:
    parser = ConfigParser()
    parser.read_config(str(bundle_folder("fulora") / "configs" / "train.json"))
    parser["spatial_size"] = [size, size]
    return parser.get_parsed_content("preprocessing")


def own_adapter(
    name: str, train: Sequence[Plane], val: Sequence[Plane], work: Path, views: int, rank: int, ids: Mapping[str, Any]
) -> Path:
    """Train an adapter of the bundle's model on real images, with the prompts of their classes.

    Args:
        name: of its folder.
        train: what it sees.
        val: images of other subjects for the validation loss; nothing is chosen by it.
        work: folder for all adapters.
        views: passes over the images.
        rank: of the adapter.
        ids: further ids of the bundle's configs.
    """
    parser = ConfigParser()
    parser.read_config(str(bundle_folder("fulora") / "configs" / "train.json"))
    prompts = parser.get_parsed_content("class_prompts")
    rows = [
        {
            "file": str(plane.file.resolve()),
            "label": plane.label,
            "caption": prompts[plane.label],
            "subject": plane.subject,
            "split": split,
        }
        for split, members in (("train", train), ("val", val))
        for plane in members
    ]
    table = work / f"{name}.csv"
    write_csv(table, rows)
    given = {"datalist": table.resolve(), "rank": rank, "views": views, "cache_dir": (work / "cache").resolve()}
    return adapter(work / f"adapter_{name}_{rank}_{views}", {**given, **ids})


def _hash(plane: Plane) -> str:
    return hashlib.sha256(plane.file.name.encode()).hexdigest()
