# SPDX-License-Identifier: Apache-2.0
"""Chest radiographs as torch datasets: single images with captions, and the same subject without disease."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcf.phantoms.cache import RenderedDataset, cached_arrays, make_rows
from medcf.phantoms.chest.captions import draw_caption
from medcf.phantoms.chest.chest_xray import ChestSample, ChestXray
from medcf.phantoms.chest.devices import DEVICES, Device
from medcf.phantoms.chest.states import ChestState
from medcf.phantoms.head.datasets import SPLITS

__all__ = ["CHILDREN", "ChestCase", "ChestDataset", "PairedChestDataset", "draw_chest"]

#: Fraction of children among normal, lung opacity, COVID-19 and viral pneumonia in a confounded set: as in the paper's
#: data, where many of the viral pneumonias are children's. In a set without confounding it is their mean in each class.
CHILDREN = (0.15, 0.15, 0.15, 0.6)

_VERSION = 2  # of the renderer; caches from other versions are not used
_SUBJECTS = 250_000  # per split: of four neighboring seeds, the first is a child and the others are adults


class ChestCase:
    """What is drawn for one case before it is rendered.

    Args:
        subject: the chest.
        state: its disease.
        device: "pacemaker", "wires" or None.
        caption: a true description.
        grain: seeds of two acquisitions with different grain.
    """

    def __init__(
        self, subject: ChestXray, state: ChestState, device: Device | None, caption: str, grain: tuple[int, int]
    ) -> None:
        self.subject, self.state, self.device, self.caption, self.grain = subject, state, device, caption, grain

    def render(self, state: ChestState | None = None, *, again: bool = False, **grid: Any) -> ChestSample:
        """Image the subject in its own or another state, with the case's grain or, ``again``, with another."""
        shown = self.state if state is None else state
        return self.subject.render(shown, seed=self.grain[int(again)], device=self.device, **grid)


def draw_chest(
    split: str,
    index: int,
    *,
    seed: int = 0,
    label: int | None = None,
    balance: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    confounded: bool = True,
    devices: float = 0.15,
    held_out: float = 0.0,
) -> ChestCase:
    """Draw a case; the result depends only on the arguments.

    Args:
        split: a key of ``SPLITS``.
        index: number of the case.
        seed: seed of the whole set.
        label: class; None draws it.
        balance: weights of the four classes when it is drawn.
        confounded: whether viral pneumonias are more often children's, see ``CHILDREN``.
        devices: probability of a device, the same for each class.
        held_out: probability of a wording in ``HELD_OUT``.

    Raises:
        ValueError: if the split or class is unknown, or the weights are not four numbers from 0 with a positive sum.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    weights = np.asarray(balance, float)
    if weights.shape != (len(CHILDREN),) or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"balance={tuple(balance)}: give four weights of at least 0 that are not all 0.")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xC4A5, SPLITS[split], index, seed])))
    drawn = int(rng.choice(len(CHILDREN), p=weights / weights.sum()))
    label = drawn if label is None else int(label)
    if not 0 <= label < len(CHILDREN):
        raise ValueError(f"label={label}: choose 0 to {len(CHILDREN) - 1}.")
    rate = CHILDREN[label] if confounded else float(np.mean(CHILDREN))
    first = SPLITS[split] + 4 * ((index + 7919 * 13 * seed) % _SUBJECTS)
    adult = 1 + int(rng.integers(3))
    subject = ChestXray(first if rng.random() < rate else first + adult)
    state = subject.sample_state(rng, label)
    device = DEVICES[int(rng.integers(len(DEVICES)))] if rng.random() < devices else None
    caption = draw_caption(state, rng, held_out=bool(rng.random() < held_out))
    first_grain, second_grain = (int(value) for value in rng.integers(2**31, size=2))
    return ChestCase(subject, state, device, caption, (first_grain, second_grain))


class ChestDataset(RenderedDataset):
    """Chest radiographs on the network's grid, one subject per case.

    An item holds ``image`` float32 (1, H, W) in [-1, 1], ``label`` int64 (index in ``CLASS_NAMES``), ``caption``
    (string), ``segmentation`` int64 (1, H, W) and ``lungs`` int64 (1, H, W) as in `ChestSample`, ``lesion`` float32
    (1, H, W) in mm, ``extent`` and ``severity`` float32, ``age_group`` (0 adult, 1 child), ``device`` (0 none, 1
    pacemaker, 2 wires), ``heart_ratio`` float32, ``spacing_mm`` float32, ``subject`` int64 and ``case`` (string).

    Args:
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of cases.
        seed: seed of the set.
        size: rows and columns.
        spacing: pixel spacing in mm; None fits each subject's field into the grid, as pictures without spacing are.
        balance: weights of the four classes.
        confounded: whether viral pneumonias are more often children's, see ``CHILDREN``.
        devices: probability of a device.
        held_out: probability of a held-out wording as caption; 0 for every training.
        cache_file: .npz file, read if it holds exactly this set and written otherwise; None keeps the set in memory.
        transform: applied to every item.
        num_workers: number of rendering processes; 0 renders in this one. The result does not depend on it.
        progress: whether to show a progress bar.
    """

    #: Rendered versions of each case: the drawn state, and in a paired set the normal one.
    states: tuple[str, ...] = ("",)

    def __init__(
        self,
        split: str = "train",
        count: int = 1000,
        *,
        seed: int = 0,
        size: Sequence[int] = (64, 64),
        spacing: float | None = None,
        balance: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        confounded: bool = True,
        devices: float = 0.15,
        held_out: float = 0.0,
        cache_file: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        if not 1 <= count <= _SUBJECTS:
            raise ValueError(f"count must be in 1..{_SUBJECTS}, not {count}")
        if len(size) != 2:
            raise ValueError(f"size={tuple(size)}: a radiograph's grid has two sizes.")
        grid: dict[str, Any] = {
            "size": (int(size[0]), int(size[1])),
            "spacing": None if spacing is None else float(spacing),
            "collimated": False,  # as `ToGrid` leaves files
        }
        options = {
            "seed": int(seed),
            "balance": tuple(float(weight) for weight in balance),
            "confounded": bool(confounded),
            "devices": float(devices),
            "held_out": float(held_out),
        }
        draw_chest(split, 0, **options)  # type: ignore[arg-type]  # fail for wrong options before rendering
        self.split, self.transform = split, transform
        jobs = [(self.states, split, index, options, grid) for index in range(count)]
        bar: dict[str, Any] = {"title": f"rendering {split}", "unit": "image", "progress": progress}
        self._arrays = cached_arrays(
            cache_file,
            repr((_VERSION, "chest_xray", self.states, split, count, options, grid)),
            lambda: make_rows(_render_row, jobs, num_workers=num_workers, **bar),
        )

    def _item(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        item: dict[str, Any] = {name: torch.tensor(int(row[name])) for name in ("label", "subject", "device")}
        for name in ("extent", "severity", "heart_ratio", "spacing_mm"):
            item[name] = torch.tensor(float(row[name]))
        item["age_group"] = torch.tensor(int(row["child"]))
        item["caption"] = str(row["caption"])
        item["case"] = f"{self.split}-{int(row['subject']):07d}"
        item["segmentation"] = torch.from_numpy(row["segmentation"].astype(np.int64))[None]
        item["lungs"] = torch.from_numpy(row["lungs"].astype(np.int64))[None]
        item["lesion"] = torch.from_numpy(row["lesion"].astype(np.float32))[None]
        for suffix in self.states:
            item[f"image{suffix}"] = torch.from_numpy(row[f"image{suffix}"].astype(np.float32))[None] / 127.5 - 1.0
        return item

    @property
    def captions(self) -> list[str]:
        """The captions of all cases."""
        return [str(caption) for caption in self._arrays["caption"]]


class PairedChestDataset(ChestDataset):
    """Chests with their paired truth: as in `ChestDataset`, and without disease.

    An item holds the entries of `ChestDataset`, and ``image_true`` float32 (1, H, W) in [-1, 1]: the same subject,
    machine and device in state normal, with other grain. Takes the same arguments.
    """

    states = ("", "_true")


def _render_row(job: tuple[tuple[str, ...], str, int, dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Render one case (a module-level function, so that processes can call it)."""
    states, split, index, options, grid = job
    case = draw_chest(split, index, **options)
    sample = case.render(**grid)
    row: dict[str, Any] = {
        "image": _gray(sample),
        "segmentation": sample.segmentation,
        "lungs": sample.lungs,
        "lesion": sample.lesion_mm.astype(np.float16),
        "label": np.int64(sample.label),
        "extent": np.float32(0.0 if sample.label == 0 else case.state.extent),
        "severity": np.float32(0.0 if sample.label == 0 else case.state.severity),
        "child": np.int64(sample.age_group == "child"),
        "device": np.int64(0 if sample.device is None else 1 + DEVICES.index(sample.device)),
        "heart_ratio": np.float32(sample.heart_ratio),
        "spacing_mm": np.float32(sample.spacing_mm[0]),
        "subject": np.int64(sample.subject),
        "caption": np.array(case.caption),
    }
    if "_true" in states:
        row["image_true"] = _gray(case.render(ChestState(), again=True, **grid))
    return row


def _gray(sample: ChestSample) -> NDArray[np.uint8]:
    return np.rint(sample.image * 255.0).astype(np.uint8)
