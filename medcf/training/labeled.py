# SPDX-License-Identifier: Apache-2.0
"""The user's own labeled images: a folder with one subfolder per class, or a table whose labels may be words."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcf.data import Case, find_cases

__all__ = ["LabeledCases", "labeled_cases"]

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2  # fraction of each class's subjects, if folders are the classes
_SEED = b"medcf"  # same split for every training, so that no network is judged on data another one saw


@dataclass(frozen=True)
class LabeledCases:
    """The user's own cases.

    Attributes:
        cases: cases whose column ``label`` is a class index.
        class_names: names of the classes, in the order of their indices; None if no case has a label.
        source: the folder or the table, for messages.
    """

    cases: Sequence[Case]
    class_names: tuple[str, ...] | None
    source: Path


def labeled_cases(
    dataset_dir: str | Path | None,
    datalist: str | Path | None,
    *,
    spatial_dims: int = 2,
    num_classes: int = 2,
) -> LabeledCases:
    """Find the user's cases and the names of their classes.

    Without a table, each subfolder of ``dataset_dir`` is a class: sorted by name, the first has index 0. A fifth of the
    subjects of each class, at least one, is in the split ``val``, the others in ``train``, always the same ones. The
    folders below a class are its subjects; if there are fewer than two, each file is a subject.

    In a table read by `medcf.data.find_cases`, labels are class indices or words; words are also sorted.

    Args:
        dataset_dir: folder of the classes, or the one to which the table's paths are relative.
        datalist: CSV or JSON table.
        spatial_dims: 2 or 3.
        num_classes: number of classes of the networks.

    Raises:
        ValueError: if the number of classes differs, or a file in a table cannot be used.
    """
    if datalist is None:
        found = _cases_by_folder(Path(dataset_dir or ""), spatial_dims)
    else:
        found = _cases_of_table(Path(datalist), dataset_dir, spatial_dims, num_classes)
    names = found.class_names
    if names is not None and len(names) != num_classes:
        classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
        raise ValueError(
            f"{found.source} holds {classes} ({', '.join(names)}), but the networks have {num_classes}: give images "
            f"of {num_classes} classes."
        )
    return found


def _cases_by_folder(root: Path, spatial_dims: int) -> LabeledCases:
    cases, failures = find_cases(root, spatial_dims=spatial_dims)
    for failure in failures:
        logger.warning("%s %s and is left out. %s", failure.file, failure.reason, failure.remedy)
    places = [case.path.relative_to(root).parts for case in cases]
    if loose := [case.path.name for case, place in zip(cases, places, strict=True) if len(place) == 1]:
        problem = f"{len(loose)} files in {root} are not in a class folder, for example {loose[0]}"
        if len(loose) == len(cases):
            raise ValueError(
                f"{problem}. A training needs labels: create one folder per class in {root}, named after the "
                "class, or list them in a table with the columns file and label (--datalist FILE.csv)."
            )
        logger.warning("%s; they are left out.", problem)
    names = tuple(sorted({place[0] for place in places if len(place) > 1}))
    # DICOM series have a folder, with one file or several; a folder that holds the whole class is not a subject
    below = {name: {place[1] for place in places if place[0] == name and len(place) > 2} for name in names}
    labeled: list[Case] = []
    for case, place in zip(cases, places, strict=True):
        if len(place) > 1:
            several = len(place) > 2 and len(below[place[0]]) > 1
            subject = place[1] if several else case.id
            labeled.append(_with(case, label=names.index(place[0]), subject=subject))
    held_out = _held_out(labeled)
    split = [_with(case, split="val" if case.columns["subject"] in held_out else "train") for case in labeled]
    return LabeledCases(split, names, root)


def _held_out(cases: Sequence[Case]) -> set[str]:
    """Choose the subjects for the split ``val``: those of each class with the smallest hashes.

    A subject in two classes is on one side only, and adding an image later moves hardly any other one.
    """
    subjects: dict[str, int] = {}
    for case in cases:
        subjects.setdefault(str(case.columns["subject"]), case.columns["label"])
    chosen: set[str] = set()
    for label in set(subjects.values()):
        members = sorted((name for name in subjects if subjects[name] == label), key=_hash)
        chosen.update(members[: max(1, round(VALIDATION_SHARE * len(members)))] if len(members) > 1 else ())
    return chosen


def _hash(subject: str) -> bytes:
    return hashlib.sha256(_SEED + subject.encode()).digest()


def _cases_of_table(table: Path, dataset_dir: str | Path | None, spatial_dims: int, num_classes: int) -> LabeledCases:
    root = table.parent if dataset_dir is None else Path(dataset_dir)
    cases, failures = find_cases(root, table, spatial_dims=spatial_dims)
    if failures:
        named = "; ".join(f"{failure.file} {failure.reason}" for failure in failures[:3])
        raise ValueError(f"{len(failures)} files in {table} cannot be used: {named}. Remove them from the table.")
    labels = [case.columns["label"] for case in cases if "label" in case.columns]
    if all(isinstance(label, int) for label in labels):
        return LabeledCases(cases, tuple(f"class {index}" for index in range(num_classes)) if labels else None, table)
    words = sorted({str(label).strip() for label in labels})
    indexed = [
        _with(case, label=words.index(str(case.columns["label"]).strip())) if "label" in case.columns else case
        for case in cases
    ]
    return LabeledCases(indexed, tuple(words), table)


def _with(case: Case, **columns: Any) -> Case:
    return replace(case, columns={**case.columns, **columns})
