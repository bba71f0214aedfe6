# SPDX-License-Identifier: Apache-2.0
"""Chest phantoms as torch datasets, rendered once and cached in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medcf.phantoms.cache import Arrays, cached_arrays, make_rows
from medcf.phantoms.chest.captions import draw_caption
from medcf.phantoms.chest.chest_xray import ChestSample, ChestXray
from medcf.phantoms.chest.devices import DEVICES, Device
from medcf.phantoms.chest.states import CLASS_NAMES, DISEASES, ChestState
from medcf.phantoms.head.datasets import shrink, shrink_labels, subject_seed, to_tensors

__all__ = ["CHILDREN", "ChestDataset", "PairedChestDataset", "draw_chest"]

#: Share of children by class where age and disease are confounded, as in the public sets in which viral pneumonia
#: comes from a children's hospital; without confounding a quarter of every class.
CHILDREN = (0.15, 0.15, 0.05, 0.65)

#: Pixels rendered for one of the grid, along each axis.
_OVERSAMPLED = 2
_VERSION = 1  # of the renderer; caches from other versions are not used

Size = tuple[int, int]


def draw_chest(
    split: str,
    index: int,
    *,
    seed: int = 0,
    label: int | None = None,
    devices: float = 0.15,
    confounded: bool = True,
) -> tuple[ChestXray, ChestState, Device | None, np.random.Generator]:
    """Draw a subject, its state and its device; depends only on the arguments.

    Args:
        split: a key of `medcf.phantoms.SPLITS`.
        index: number of the case.
        seed: seed of the whole set.
        label: class; None draws it, all four equally often.
        devices: probability of a pacemaker or of wires, the same in every class.
        confounded: let the share of children depend on the class, see ``CHILDREN``.

    Returns:
        The subject, its state, its device, and the generator for what follows.
    """
    drawn = subject_seed(split, index, seed)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xC4A5, drawn, seed])))
    chosen = int(rng.integers(len(DISEASES)))
    label = chosen if label is None else label
    share = CHILDREN[label] if confounded else 0.25
    subject = ChestXray(_of_age(drawn, child=bool(rng.random() < share)))
    state = subject.sample_state(rng, label)
    device = DEVICES[int(rng.integers(len(DEVICES)))] if rng.random() < devices else None
    return subject, state, device, rng


def _of_age(drawn: int, *, child: bool) -> int:
    """Return the subject numbered ``drawn`` as a child or an adult; no two numbers give the same subject."""
    return 4 * drawn if child else 4 * drawn + 1 + drawn % 3


class ChestDataset(Dataset[dict[str, Any]]):
    """Rendered chests on the network's grid, one subject per case, the four classes equally often.

    Images are rendered with twice the grid's pixels along each axis and averaged. An item holds ``image`` float32
    (1, H, W) in [-1, 1], ``label`` int64, ``caption`` (one of the training wordings), ``segmentation`` int64 (1, H, W)
    as in `ChestSample`, ``lungs`` int64 (1, H, W), ``lesion`` float32 (1, H, W) in mm, ``child`` bool, ``subject``
    int64 and ``case`` (string).

    Args:
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of cases.
        seed: seed of the set.
        size: rows and columns of the images.
        spacing: pixel spacing in mm; None fits the exposed field into the rows.
        label: class of all cases; None mixes them.
        devices: probability of a device.
        confounded: let the share of children depend on the class.
        held_out: captions in wordings that no training sees.
        cache_file: .npz file, read if it holds exactly this set and written otherwise; None keeps the set in memory.
        transform: applied to every item.
        num_workers: number of rendering processes; the result does not depend on it.
        progress: whether to show a progress bar.
    """

    class_names = CLASS_NAMES

    def __init__(
        self,
        split: str = "train",
        count: int = 1000,
        *,
        seed: int = 0,
        size: Size = (64, 64),
        spacing: float | None = None,
        label: int | None = None,
        devices: float = 0.15,
        confounded: bool = True,
        held_out: bool = False,
        cache_file: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        subject_seed(split, count)  # fail for an unknown split before rendering
        self.split, self.transform = split, transform
        options = (split, seed, (int(size[0]), int(size[1])), spacing, label, float(devices), confounded, held_out)
        jobs = [(*options, index) for index in range(count)]
        text = {"title": f"rendering {split}", "unit": "image"}
        self._arrays = cached_arrays(
            cache_file,
            repr(("chest_xray", _VERSION, count, *options)),
            lambda: _render(jobs, **text, num_workers=num_workers, progress=progress),
        )

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._arrays["label"])

    def __getitem__(self, index: int) -> Any:
        """Return one case, after the transform if there is one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"case {index} is outside a set of {len(self)}")
        row = {name: values[index] for name, values in self._arrays.items()}
        image, segmentation = to_tensors(row["image"], row["segmentation"])
        item = {
            "image": image,
            "segmentation": segmentation,
            "lungs": torch.from_numpy(row["lungs"].astype(np.int64))[None],
            "lesion": torch.from_numpy(row["lesion"].astype(np.float32))[None],
            "label": torch.tensor(int(row["label"])),
            "caption": str(row["caption"]),
            "child": torch.tensor(bool(row["child"])),
            "subject": torch.tensor(int(row["subject"])),
            "case": f"{self.split}-{int(row['subject']):08d}",
        }
        return item if self.transform is None else self.transform(item)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of all cases, for weighted sampling."""
        return self._arrays["label"].astype(np.int64)


class PairedChestDataset(Dataset[dict[str, Any]]):
    """Sick chests with the same chest in another state, by default the healthy one: paired truth.

    An item is one of `ChestDataset`, and ``truth`` float32 (1, H, W), the same subject in the other state with the same
    machine and device and another grain, ``truth_same_grain``, the same with the input's grain, and ``truth_label``.

    Args:
        split: as in `ChestDataset`.
        count: number of cases.
        target: class of the truth, or None for a normal chest.
        label: class of the inputs; None draws one of the diseases.
        **options: further options of `draw_chest`, ``size``, ``spacing``, ``held_out`` and ``progress``.
    """

    def __init__(
        self,
        split: str = "test",
        count: int = 64,
        *,
        target: int | None = None,
        label: int | None = None,
        size: Size = (64, 64),
        spacing: float | None = None,
        held_out: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> None:
        chosen = [1 + index % (len(DISEASES) - 1) if label is None else label for index in range(count)]
        jobs = [
            (split, index, size, spacing, each, target or 0, held_out, options) for index, each in enumerate(chosen)
        ]
        self.split = split
        self._arrays = make_rows(_render_pair, jobs, title=f"rendering {split} pairs", unit="pair", progress=progress)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._arrays["label"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one pair."""
        row = {name: values[index] for name, values in self._arrays.items()}
        item = ChestDataset.__getitem__(_One(self.split, row), 0)
        for name in ("truth", "truth_same_grain"):
            item[name] = torch.from_numpy(row[name].astype(np.float32))[None] / 127.5 - 1.0
        return {**item, "truth_label": torch.tensor(int(row["truth_label"]))}


class _One(ChestDataset):
    """A set of one row that is rendered already."""

    def __init__(self, split: str, row: dict[str, Any]) -> None:
        self.split, self.transform = split, None
        self._arrays = {name: np.asarray(value)[None] for name, value in row.items()}


def _render(jobs: Any, **options: Any) -> Arrays:
    return make_rows(_render_row, jobs, **options)


def _render_row(job: tuple[str, int, Size, float | None, int | None, float, bool, bool, int]) -> dict[str, Any]:
    """Render one case on the network's grid (a module-level function, so that processes can call it)."""
    split, seed, size, spacing, label, devices, confounded, held_out, index = job
    subject, state, device, rng = draw_chest(
        split, index, seed=seed, label=label, devices=devices, confounded=confounded
    )
    caption = draw_caption(state, rng, held_out=held_out)
    sample = _imaged(subject, state, device, int(rng.integers(2**31)), size, spacing)
    return _row(sample, caption, size)


def _render_pair(job: tuple[str, int, Size, float | None, int, int, bool, dict[str, Any]]) -> dict[str, Any]:
    """Render one case and its truth."""
    split, index, size, spacing, label, target, held_out, options = job
    subject, state, device, rng = draw_chest(split, index, label=label, **options)
    caption = draw_caption(state, rng, held_out=held_out)
    grain, other_grain = (int(value) for value in rng.integers(2**31, size=2))
    other = subject.sample_state(rng, target)
    row = _row(_imaged(subject, state, device, grain, size, spacing), caption, size)
    for name, seed in (("truth", other_grain), ("truth_same_grain", grain)):
        row[name] = _pixels(_imaged(subject, other, device, seed, size, spacing), size)
    return {**row, "truth_label": np.int64(target)}


def _imaged(
    subject: ChestXray, state: ChestState, device: Device | None, seed: int, size: Size, spacing: float | None
) -> ChestSample:
    native = (size[0] * _OVERSAMPLED, size[1] * _OVERSAMPLED)
    step = None if spacing is None else spacing / _OVERSAMPLED
    return subject.render(state, seed=seed, size=native, spacing=step, device=device)


def _pixels(sample: ChestSample, size: Size) -> NDArray[np.uint8]:
    return np.rint(shrink(sample.image, size) * 255.0).astype(np.uint8)


def _row(sample: ChestSample, caption: str, size: Size) -> dict[str, Any]:
    """Put a sample onto the grid."""
    return {
        "image": _pixels(sample, size),
        "segmentation": shrink_labels(sample.segmentation, size),
        "lungs": shrink_labels(sample.lungs, size),
        "lesion": shrink(sample.lesion_mm, size).astype(np.float16),
        "label": np.int64(sample.label),
        "caption": np.str_(caption),
        "child": np.bool_(sample.age_group == "child"),
        "subject": np.int64(sample.subject),
    }
