# SPDX-License-Identifier: Apache-2.0
"""The datasets of the training configs: phantoms, unless the user gives their own images.

The user's images go through the same preprocessing as in inference, in MONAI's datasets, which cache the result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, Transform
from torch.utils.data import Dataset

from medcf.data import Case, grid_record, read_labels
from medcf.data.image import geometry
from medcf.data.resample import shares_of_labels
from medcf.runtime.errors import UnreadableImage
from medcf.training.labeled import labeled_cases

__all__ = ["TargetsOnGridd", "choose_cases", "own_dataset", "split_of_subject", "training_dataset"]

logger = logging.getLogger(__name__)

#: If a table has no column ``split``, each subject is assigned to one of these by the hash of its name.
SHARES = {"train": 0.6, "val": 0.2, "oracle": 0.2}
TARGETS = ("label", "segmentation", "quality", "concepts", "caption")


def training_dataset(
    split: str = "train",
    *,
    datalist: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    phantom: str = "fetal_head",
    count: int = 1000,
    size: Sequence[int] = (64, 80),
    spacing: float | None = 1.75,
    seed: int = 0,
    sp_fraction: float = 0.45,
    phantom_options: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    targets: Sequence[str] = ("label",),
    null_label: int | None = None,
    num_classes: int = 2,
    class_prompts: Sequence[str] = (),
    preprocessing: Callable[[Any], Any] | None = None,
    transform: Callable[[dict[str, Any]], Any] | None = None,
) -> Dataset:
    """Build the dataset for one split: phantoms, or the user's own images.

    Args:
        split: ``"train"``, ``"val"``, ``"oracle"`` or ``"test"``.
        datalist: table of the user's own images, see `own_dataset` for it and for ``targets``, ``null_label``,
            ``preprocessing`` and ``transform``.
        dataset_dir: folder to which the table's paths are relative; without a table, one with a subfolder per class. If
            neither is given, phantoms are rendered, which have all targets and are already on the grid.
        phantom: ``"fetal_head"``, ``"chest_xray"``, ``"fetal_planes"``, ``"fetal_planes_paired"`` (2D) or
            ``"brain_mri"`` (3D).
        count: number of phantoms.
        size: size of the network's grid.
        spacing: spacing of the grid in mm; None, for radiographs, fits the exposed field into it.
        seed: seed of poses and speckle.
        sp_fraction: fraction of class 1 (standard planes, AD) among the phantoms; chests have four equal
            classes, fetal planes six as unequal as FETAL_PLANES_DB's.
        phantom_options: further options of the phantom's dataset, such as ``{"site": "B", "balance": "equal"}`` of
            `medcf.phantoms.PlanesDataset`.
        cache_dir: folder for caching the results; None recomputes them in each run. Under torchrun the main process
            computes them while the others wait.
        targets: what the training needs in addition to the image.
        null_label: class index of images without a label.
        num_classes: number of classes of the user's own images.
        class_prompts: captions, by class, of the user's own images without one.
        preprocessing: as in inference.
        transform: applied to every sample, usually augmentation.

    Returns:
        Dataset of dictionaries with ``image`` (1, *size) in [-1, 1], ``label``, ``case``, and whatever else the source
        provides: ``segmentation``, ``concepts``, ``quality``.

    Raises:
        ValueError: if own images come without ``preprocessing`` or without labels.
    """
    own = datalist is not None or dataset_dir is not None
    if own and preprocessing is None:
        raise ValueError("preprocessing is missing: your own images must be read and put onto the grid.")
    folder = None if cache_dir is None else Path(cache_dir)
    with nullcontext() if folder is None else idist.one_rank_first():
        if own:
            chosen: dict[str, Any] = {"spatial_dims": len(size), "targets": targets, "null_label": null_label}
            chosen |= {"num_classes": num_classes, "class_prompts": class_prompts}
            return own_dataset(datalist, split, preprocessing, dataset_dir, folder, transform, **chosen)
        from medcf.phantoms import BrainDataset, ChestDataset, PairedPlanesDataset, PhantomDataset, PlanesDataset

        grid = "x".join(str(n) for n in size)
        step = "field" if spacing is None else f"{spacing:g}mm"
        further = {} if phantom_options is None else dict(phantom_options)
        told = "".join(f"_{key}-{value}" for key, value in sorted(further.items()))
        name = f"{phantom}_{split}_{count}_{grid}_{step}_{sp_fraction:g}{told}_seed{seed}.npz"
        options: dict[str, Any] = {
            **further,
            "seed": seed,
            "size": tuple(int(n) for n in size),
            "spacing": spacing,
            "cache_file": None if folder is None else folder / name,
            "transform": transform,
        }
        if phantom == "chest_xray":
            return ChestDataset(split, count, **options)
        if phantom.startswith("fetal_planes"):
            planes = PairedPlanesDataset if phantom == "fetal_planes_paired" else PlanesDataset
            return planes(split, count, **options)
        if spacing is None:
            raise ValueError(f"spacing is None: {phantom} needs the spacing of the grid in mm.")
        if phantom == "brain_mri":
            return BrainDataset(split, count, ad_fraction=sp_fraction, **options)
        return PhantomDataset(phantom, split, count, sp_fraction=sp_fraction, **options)


def own_dataset(
    datalist: str | Path | None,
    split: str,
    preprocessing: Callable[[Any], Any] | None,
    dataset_dir: str | Path | None = None,
    cache_dir: Path | None = None,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    *,
    spatial_dims: int = 2,
    targets: Sequence[str] = ("label",),
    null_label: int | None = None,
    num_classes: int = 2,
    class_prompts: Sequence[str] = (),
) -> Dataset:
    """Put the images from a table, or from a folder with a subfolder per class, onto the grid, once each.

    The table is read by `medcf.data.find_cases`: the column ``file``, and as far as the training needs them ``label``
    (class index or word), ``segmentation`` (image of class indices on the same pixels; for pictures also ``mask``),
    ``quality`` (in [0, 1]), ``concepts`` (numbers in [0, 1] separated by blanks) and ``caption`` (text), plus
    ``subject`` and ``split``.
    Without ``split``, images are split by subject (by file if there is no ``subject`` either). For folders see
    `medcf.training.labeled.labeled_cases`.

    Args:
        datalist: CSV or JSON table; None uses the subfolders of ``dataset_dir`` as classes.
        split: the split to keep.
        preprocessing: as in inference.
        dataset_dir: folder to which the table's paths are relative, or the folder of the classes.
        cache_dir: folder in which MONAI's PersistentDataset caches the images; None caches them in memory.
        transform: applied to every sample on each access.
        spatial_dims: 2 or 3.
        targets: what each sample holds in addition to ``image``, ``case`` and ``subject``.
        null_label: label for images without one; None leaves them out if ``label`` is a target.
        num_classes: number of classes.
        class_prompts: captions, by class, of images without one.

    Returns:
        The dataset; its ``class_names`` are those of `medcf.training.labeled.LabeledCases`, its ``digest``
        distinguishes these images and labels from others, wherever they are stored.

    Raises:
        ValueError: if a file cannot be read, or no image in the split has all targets.
    """
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise ValueError(f"targets: {', '.join(unknown)} is not one of {', '.join(TARGETS)}.")
    found = labeled_cases(dataset_dir, datalist, spatial_dims=spatial_dims, num_classes=num_classes)
    captioned = [_with_caption(case, class_prompts) for case in found.cases]
    cases = choose_cases(captioned, found.source, split, targets, null_label=null_label)
    if found.class_names is not None:
        counts = Counter(case.columns.get("label") for case in cases)
        told = (f"{index} = {name} ({counts[index]} images)" for index, name in enumerate(found.class_names))
        logger.info("Classes in the split %r: %s", split, ", ".join(told))
    items = [{**case.item(), "state": _state(case)} for case in cases]
    # flat, so that MONAI's datasets recognize the first random step and cache everything before it
    steps = Compose([step for step in (preprocessing, TargetsOnGridd(targets), transform) if step]).flatten()
    dataset: Any
    if cache_dir is None:
        dataset = CacheDataset(items, steps, cache_rate=1.0, num_workers=0, copy_cache=True)
    else:
        dataset = PersistentDataset(items, steps, cache_dir, hash_transform=pickle_hashing)
    dataset.class_names = found.class_names
    dataset.digest = _digest(items)
    return dataset


def _with_caption(case: Case, class_prompts: Sequence[str]) -> Case:
    """Give a case without a caption the prompt of its class."""
    label = case.columns.get("label")
    if "caption" in case.columns or not isinstance(label, int) or not 0 <= label < len(class_prompts):
        return case
    return Case(case.id, case.files, case.frame, case.mask, {**case.columns, "caption": class_prompts[label]})


def choose_cases(
    cases: Sequence[Case],
    source: str | Path,
    split: str,
    columns: Sequence[str],
    *,
    null_label: int | None = None,
) -> list[Case]:
    """Select the cases of a split that have all columns; the log reports how many do and do not.

    Args:
        cases: all cases.
        source: their table or folder, for messages.
        split: the split; a case without one gets that of its subject, see `split_of_subject`.
        columns: what a training needs for each case.
        null_label: ``label`` for cases without one.

    Raises:
        ValueError: if no case is left.
    """
    own = {} if null_label is None else {"label": null_label}
    labeled = [Case(case.id, case.files, case.frame, case.mask, {**own, **case.columns}) for case in cases]
    members = [
        case
        for case in labeled
        if case.columns.get("split", split_of_subject(str(case.columns.get("subject", case.id)))) == split
    ]
    if not members:
        remedy = "name them in a table with a column 'split'" if Path(source).is_dir() else "fill its column 'split'"
        raise ValueError(f"{source} has no image in the split {split!r}; {remedy}.")
    kept = [case for case in members if all(column in case.columns for column in columns)]
    if not kept:
        raise ValueError(
            f"No image in the split {split!r} of {source} has everything this training needs; fill the columns "
            f"{', '.join(columns)}."
        )
    if left_out := len(members) - len(kept):
        logger.warning("%d images of %s lack one of %s and are left out", left_out, source, ", ".join(columns))
    logger.info("%d images in the split %r of %s", len(kept), split, source)
    return kept


def split_of_subject(subject: str) -> str:
    """Assign a subject to a split, always the same one: 60 % train, 20 % val, 20 % oracle.

    Example:
        >>> split_of_subject("subject 7") == split_of_subject("subject 7")
        True
    """
    position = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") / 2**64
    for name, share in SHARES.items():
        if position < share:
            return name
        position -= share
    return "train"


class TargetsOnGridd(Transform):
    """Turn a preprocessed case into a training sample: plain tensors, as required by ``targets``.

    Args:
        targets: any of ``label`` int64, ``segmentation`` int64 (1, *grid), ``quality`` float32, ``concepts`` float32
            and ``caption``, a text.
    """

    def __init__(self, targets: Sequence[str] = ("label",)) -> None:
        self.targets = tuple(targets)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return ``image``, ``case``, ``subject`` and the targets.

        Raises:
            UnreadableImage: if a segmentation does not match its image.
            ValueError: if a score is outside [0, 1].
        """
        sample: dict[Hashable, Any] = {
            "image": data["image"].as_subclass(torch.Tensor),
            "case": str(data["case"]),
            "subject": str(data.get("subject", data["case"])),
        }
        for target in self.targets:
            value = data[target]
            if target == "segmentation":
                sample[target] = _labels_on_grid(Path(value), data["image"])
            elif target == "caption":
                sample[target] = str(value)
            elif target == "concepts":
                parts = list(value) if isinstance(value, list | tuple) else str(value).split()
                sample[target] = torch.tensor([_score(part, data) for part in parts])
            else:
                sample[target] = torch.tensor(int(value) if target == "label" else _score(value, data))
        return sample


def _score(value: Any, data: Mapping[Hashable, Any]) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{data['case']}: {value!r} is not a score; quality and concepts are numbers in [0, 1].")
    return number


def _labels_on_grid(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Resample class indices: each pixel of the grid takes the class that fills most of it."""
    record, stored = grid_record(image), read_labels(path)
    fits = tuple(stored.shape[1:]) == record.native
    if fits and stored.ndim == 4 and record.image is not None:
        fits = np.allclose(geometry(stored)[0], geometry(record.image)[0], atol=0.05)
    if not fits:
        remedy = "Resample it onto the image with nearest-neighbor interpolation."
        raise UnreadableImage(path, "is a segmentation whose pixels do not match its image", remedy)
    return shares_of_labels(stored.as_subclass(torch.Tensor), record.matrix, record.grid)


def _state(case: Case) -> list[tuple[str, int, int]]:
    """Detect a replaced file: size and time are part of the key under which it is cached."""
    files = [*case.files, case.mask, case.columns.get("segmentation")]
    states = [(str(file), os.stat(file)) for file in files if file]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _digest(items: Sequence[Mapping[str, Any]]) -> str:
    known = [[item["case"], str(item.get("label")), [size for _, size, _ in item["state"]]] for item in items]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()
