# SPDX-License-Identifier: Apache-2.0
"""Pairs that no scanner provides: a non-standard plane and the standard plane of the same head."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from medcf.phantoms.base import PhantomSample
from medcf.phantoms.head.datasets import draw_case, native_size, on_grid, to_tensors

__all__ = ["PairedPhantomDataset"]


class PairedPhantomDataset(Dataset[dict[str, Any]]):
    """Phantoms with their paired truth, on the network's grid, one subject per case.

    The inputs are the subjects and poses that ``write_demo`` writes for the same split, label and seed. The truth is
    the same subject's standard rendering with different speckle. An item holds ``image`` and ``image_true`` float32 (1,
    H, W) in [-1, 1], ``segmentation`` and ``segmentation_true`` int64 (1, H, W), ``label`` int64, ``quality`` float32,
    ``subject`` int64 and ``case`` (string).

    Args:
        name: phantom in ``PHANTOMS``.
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of cases.
        label: class of the inputs; 0 is non-standard, None draws it.
        seed: seed of the set.
        size: rows and columns of the images.
        spacing: pixel spacing in mm.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        name: str = "fetal_head",
        split: str = "test",
        count: int = 32,
        *,
        label: int | None = 0,
        seed: int = 0,
        size: tuple[int, int] = (64, 80),
        spacing: float = 1.75,
        progress: bool = True,
    ) -> None:
        self.size = (int(size[0]), int(size[1]))
        native, native_spacing = native_size(self.size, spacing)
        render: dict[str, Any] = {"size": native, "spacing": native_spacing}
        self.items = []
        for index in tqdm(range(count), desc=f"rendering {split} pairs", unit="pair", disable=not progress):
            subject, sample = draw_case(name, split, index, seed=seed, label=label, **render)
            item = self._item(sample, "")
            item.update(self._item(subject.render(seed=1, **render), "_true"))
            item.update(
                label=torch.tensor(sample.label),
                quality=torch.tensor(sample.quality, dtype=torch.float32),
                subject=torch.tensor(sample.subject),
                case=f"{split}-{sample.subject:07d}",
            )
            self.items.append(item)

    def _item(self, sample: PhantomSample, suffix: str) -> dict[str, Any]:
        image, segmentation = to_tensors(*on_grid(sample, self.size))
        return {f"image{suffix}": image, f"segmentation{suffix}": segmentation}

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one case with its truth."""
        return self.items[index]
