# SPDX-License-Identifier: Apache-2.0
"""Brain phantoms as torch datasets: single subjects, and subjects in both disease states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcf.phantoms.brain.brain_mri import TISSUES, BrainMRI, BrainSample, BrainState
from medcf.phantoms.cache import RenderedDataset, cached_arrays, make_rows
from medcf.phantoms.head.datasets import subject_seed

__all__ = ["BrainDataset", "PairedBrainDataset", "brain_on_grid", "draw_brain"]

_VERSION = 1  # of the renderer; caches from other versions are not used
_RENDERED = 2.0  # mm, the coarsest spacing for rendering a brain
_LABELS = len(TISSUES) + 1


def draw_brain(
    split: str, index: int, *, seed: int = 0, ad_fraction: float = 0.5
) -> tuple[BrainMRI, BrainState, np.random.Generator]:
    """Draw the subject and the state of a case; the result depends only on the arguments.

    Args:
        split: a key of ``SPLITS``.
        index: number of the case.
        seed: seed of the whole set.
        ad_fraction: probability of class AD.

    Returns:
        The subject, its state, and the generator for the case's further random numbers.
    """
    subject = BrainMRI(subject_seed(split, index, seed))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xB4A2, subject.seed, seed])))
    label = int(rng.random() < ad_fraction)
    return subject, subject.sample_state(rng, label), rng


class BrainDataset(RenderedDataset):
    """Brains on the network's grid, one subject per case.

    Volumes are rendered at 2 mm or finer and averaged over blocks. An item holds ``image`` float32 (1, X, Y, Z) in [-1,
    1] (-1 outside the brain), ``segmentation`` int64 (1, X, Y, Z), ``label`` (0 CN, 1 AD), ``severity``, ``age`` in
    years, ``sex`` (0 F, 1 M), ``volumes`` float32 (5,) for ``TISSUES`` in mm³, ``subject`` and ``case``.

    Args:
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of cases.
        seed: seed of the set.
        size: voxels along x, y and z.
        spacing: voxel spacing in mm; 2 or less, or a multiple of 2.
        ad_fraction: fraction of class AD.
        cache_file: .npz file, read if it holds exactly this set and written otherwise; None keeps the set in memory.
        transform: applied to every item.
        num_workers: number of rendering processes; 0 renders in this one. The result does not depend on it.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the split is unknown, or the spacing is not a multiple of 2 mm above 2 mm.
    """

    #: Rendered versions of each case: the drawn state, and in a paired set the other class's typical one.
    states: tuple[str, ...] = ("",)

    def __init__(
        self,
        split: str = "train",
        count: int = 100,
        *,
        seed: int = 0,
        size: Sequence[int] = (40, 48, 40),
        spacing: float = 4.0,
        ad_fraction: float = 0.5,
        cache_file: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        subject_seed(split, 0)  # fail for an unknown split before rendering
        _block(spacing)
        if len(size) != 3:
            raise ValueError(f"size={tuple(size)}: a brain's grid has three sizes.")
        self.split = split
        self.transform = transform
        options = (self.states, split, seed, tuple(int(n) for n in size), float(spacing), float(ad_fraction))
        jobs = [(*options, index) for index in range(count)]
        bar: dict[str, Any] = {"title": f"rendering {split}", "unit": "brain", "progress": progress}
        self._arrays = cached_arrays(
            cache_file,
            repr((_VERSION, count, *options)),
            lambda: make_rows(_render_row, jobs, num_workers=num_workers, **bar),
        )

    def _item(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        item: dict[str, Any] = {
            "label": torch.tensor(int(row["label"])),
            "age": torch.tensor(float(row["age"])),
            "sex": torch.tensor(int(row["sex"])),
            "subject": torch.tensor(int(row["subject"])),
            "case": f"{self.split}-{int(row['subject']):07d}",
        }
        for suffix in self.states:
            item[f"image{suffix}"] = torch.from_numpy(row[f"image{suffix}"].astype(np.float32))[None] / 127.5 - 1.0
            item[f"segmentation{suffix}"] = torch.from_numpy(row[f"segmentation{suffix}"].astype(np.int64))[None]
            item[f"severity{suffix}"] = torch.tensor(float(row[f"severity{suffix}"]))
            item[f"volumes{suffix}"] = torch.from_numpy(row[f"volumes{suffix}"])
        return item


class PairedBrainDataset(BrainDataset):
    """Brains in two states: as in ``BrainDataset``, and at the typical severity of the other class.

    An item holds the entries of ``BrainDataset``, ``target`` (the other class), and ``image_true``,
    ``segmentation_true``, ``severity_true`` and ``volumes_true`` for the same subject on the same scanner in the other
    class, with different noise: what a perfect counterfactual for a typical case of that class looks like. Takes the
    same arguments.
    """

    states = ("", "_true")

    def _item(self, index: int) -> dict[str, Any]:
        item = super()._item(index)
        return {**item, "target": 1 - item["label"]}


def brain_on_grid(sample: BrainSample, factor: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Average a rendered brain over blocks of ``factor`` voxels per side.

    Args:
        sample: the brain.
        factor: voxels per side.

    Returns:
        Gray values, 0 if less than half of a block is inside the brain, and the most frequent label in each block
        within the brain; ties go to the later label.
    """
    inside = _blocks(sample.mask, factor)
    image = _blocks(sample.image, factor) / np.maximum(inside, 1e-3)
    shares = np.stack([_blocks(sample.segmentation == label, factor) for label in range(_LABELS - 1, 0, -1)])
    labels = (_LABELS - 1 - np.argmax(shares, axis=0)).astype(np.uint8)
    keep = inside >= 0.5
    return (np.rint(image * 255.0) * keep).astype(np.uint8), labels * keep


def _render_row(job: tuple[Any, ...]) -> dict[str, Any]:
    """Render one case on the network's grid (a module-level function, so that processes can call it)."""
    states, split, seed, size, spacing, ad_fraction, index = job
    subject, state, rng = draw_brain(split, index, seed=seed, ad_fraction=ad_fraction)
    row: dict[str, Any] = {
        "label": np.int64(state.label),
        "age": np.float32(subject.age),
        "sex": np.int64(subject.sex == "M"),
        "subject": np.int64(subject.seed),
    }
    factor = _block(spacing)
    for suffix in states:
        shown = state if not suffix else BrainState.typical(1 - state.label)
        sample = subject.render(
            shown, seed=int(rng.integers(2**31)), size=tuple(n * factor for n in size), spacing=spacing / factor
        )
        row[f"image{suffix}"], row[f"segmentation{suffix}"] = brain_on_grid(sample, factor)
        row[f"severity{suffix}"] = np.float32(sample.severity)
        row[f"volumes{suffix}"] = np.array([sample.volumes_mm3[name] for name in TISSUES], np.float32)
    return row


def _block(spacing: float) -> int:
    """Return the number of rendered voxels per voxel of the grid."""
    factor = max(round(spacing / _RENDERED), 1)
    if spacing > _RENDERED and abs(factor * _RENDERED - spacing) > 1e-6:
        raise ValueError(f"spacing={spacing:g}: use 2 mm or less, or a multiple of 2 mm.")
    return factor


def _blocks(array: NDArray[Any], factor: int) -> NDArray[np.float32]:
    x, y, z = (n // factor for n in array.shape)
    return array.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5), dtype=np.float32)
