# SPDX-License-Identifier: Apache-2.0
"""A table of images with their counterfactuals beside them: augmentation for any training that takes a datalist."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medcf.data.counterfactual_runs import CounterfactualRuns
from medcf.runtime.atomic import write_csv
from medcf.training.datasets import split_of_subject
from medcf.training.labeled import labeled_cases

__all__ = ["augmented_datalist"]

logger = logging.getLogger(__name__)


def augmented_datalist(
    datalist: str | Path | None,
    runs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    dataset_dir: str | Path | None = None,
    spatial_dims: int = 2,
    num_classes: int = 2,
    flipped: bool = True,
) -> str:
    """Write a table of all images, and of the counterfactuals of those in the split ``train``.

    A counterfactual has the label of its target class, and the subject and the split of the image that it was made of.

    Args:
        datalist: table of the images, see `medcf.training.datasets.own_dataset`; None for a folder per class.
        runs: output folders of a bundle's inference over the training images, see `CounterfactualRuns`; none of them
            writes the images alone.
        output: table to write.
        dataset_dir: folder to which the table's paths are relative, or the folder of the classes.
        spatial_dims: 2 or 3.
        num_classes: number of classes.
        flipped: only counterfactuals that the explained classifier takes for the target class.

    Returns:
        The path of the table.

    Raises:
        ValueError: if there are runs, and they explain no training image.
    """
    found = labeled_cases(dataset_dir, datalist, spatial_dims=spatial_dims, num_classes=num_classes)
    indices = tuple(f"class {index}" for index in range(num_classes))
    names: Sequence[Any] = range(num_classes) if found.class_names in (None, indices) else found.class_names or ()
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    changed = CounterfactualRuns(folders, flipped=flipped) if folders else None
    rows: list[dict[str, Any]] = []
    added = 0
    for case in found.cases:
        if not isinstance(label := case.columns.get("label"), int):
            continue
        subject = str(case.columns.get("subject", case.id))
        row = {"file": _path(case.files), "label": names[label], "subject": subject}
        row["split"] = str(case.columns.get("split", split_of_subject(subject)))
        rows.append(row)
        if changed is not None and row["split"] == "train":
            made = [
                {**row, "file": str((each.folder / "counterfactual.nii.gz").resolve()), "label": names[each.label]}
                for each in changed.of(case.files[0])
            ]
            rows += made
            added += len(made)
    if changed is not None and not added:
        told = ", ".join(map(str, folders))
        raise ValueError(f"{told} explain no training image of {found.source}: explain those of the split 'train'.")
    write_csv(Path(output), rows)
    logger.info("%d images and %d counterfactuals in %s", len(rows) - added, added, output)
    return str(output)


def _path(files: Sequence[Path]) -> str:
    """Return the file, or the folder of a series."""
    return str((files[0] if len(files) == 1 else files[0].parent).resolve())
