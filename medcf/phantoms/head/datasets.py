# SPDX-License-Identifier: Apache-2.0
"""Phantoms as a torch dataset, rendered once and cached in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize_local_mean

from medcf.phantoms.base import PhantomSample
from medcf.phantoms.cache import Arrays, RenderedDataset, cached_arrays, make_rows
from medcf.registry import PHANTOMS, load_plugins, lookup

__all__ = ["SPLITS", "PhantomDataset", "draw_case", "native_size", "on_grid", "shrink", "subject_seed", "to_tensors"]

_SUBJECTS = 1_000_000

#: First subject of each split; the ranges of one million subjects do not overlap.
SPLITS: dict[str, int] = {
    name: index * _SUBJECTS for index, name in enumerate(("train", "val", "oracle", "test", "demo"))
}

_NATIVE_SIZE = (128, 160)
_NATIVE_SPACING = 0.875
_LABELS = 5


def subject_seed(split: str, index: int, seed: int = 0) -> int:
    """Return the seed of a case's subject.

    Args:
        split: a key of ``SPLITS``.
        index: number of the case, at least 0.
        seed: selects other subjects within the same split.

    Returns:
        A seed within the split's million.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    return SPLITS[split] + (index + 7919 * 13 * seed) % _SUBJECTS


def draw_case(
    name: str,
    split: str,
    index: int,
    *,
    seed: int = 0,
    label: int | None = None,
    sp_fraction: float = 0.45,
    **render: Any,
) -> tuple[Any, PhantomSample]:
    """Draw and render one case; depends only on its arguments.

    Args:
        name: phantom in ``PHANTOMS``.
        split: a key of ``SPLITS``.
        index: number of the case.
        seed: seed of the whole set.
        label: class of the pose; None draws it.
        sp_fraction: probability of label 1 when it is drawn.
        render: options for the subject's ``render``.

    Returns:
        The subject and the rendered sample.
    """
    load_plugins()
    subject = lookup(PHANTOMS, name)(subject_seed(split, index, seed))
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0xCA5E, subject.seed, seed])))
    drawn = int(rng.random() < sp_fraction)
    pose = subject.sample_pose(rng, drawn if label is None else label)
    return subject, subject.render(pose, seed=int(rng.integers(2**31)), **render)


class PhantomDataset(RenderedDataset):
    """Rendered phantoms on the network's grid, one subject per case.

    Images are rendered at 128 x 160 pixels of 0.875 mm and averaged over areas; labels are the most frequent ones in
    each area. An item holds ``image`` float32 (1, H, W) in [-1, 1], ``segmentation`` int64 (1, H, W), ``label`` int64,
    ``concepts`` float32 (K,), ``quality`` float32, ``subject`` int64 and ``case`` (string).

    Args:
        name: phantom in ``PHANTOMS``.
        split: "train", "val", "oracle", "test" or "demo"; their subjects are disjoint.
        count: number of cases.
        seed: seed of the set.
        size: rows and columns of the images.
        spacing: pixel spacing in mm.
        sp_fraction: fraction of standard planes (label 1).
        cache_file: .npz file, read if it holds exactly this set and written otherwise; None keeps the set in memory.
        transform: applied to every item.
        num_workers: number of rendering processes; 0 renders in this one. The result does not depend on it.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        name: str = "fetal_head",
        split: str = "train",
        count: int = 1000,
        *,
        seed: int = 0,
        size: tuple[int, int] = (64, 80),
        spacing: float = 1.75,
        sp_fraction: float = 0.45,
        cache_file: str | Path | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        if not 1 <= count <= _SUBJECTS:
            raise ValueError(f"count must be in 1..{_SUBJECTS}, not {count}")
        subject_seed(split, 0)  # fail for an unknown split before rendering
        self.transform = transform
        self.split = split
        options = (name, split, seed, (int(size[0]), int(size[1])), float(spacing), float(sp_fraction))
        jobs = [(*options, index) for index in range(count)]
        self._arrays = cached_arrays(
            cache_file,
            repr((_VERSION, count, *options)),
            lambda: _render(jobs, title=f"rendering {split}", unit="image", num_workers=num_workers, progress=progress),
        )
        self.concept_names: tuple[str, ...] = tuple(str(concept) for concept in self._arrays.pop("concept_names"))

    def _item(self, index: int) -> dict[str, Any]:
        row = self._row(index)
        image, segmentation = to_tensors(row["image"], row["segmentation"])
        return {
            "image": image,
            "segmentation": segmentation,
            "label": torch.tensor(int(row["label"])),
            "concepts": torch.from_numpy(row["concepts"].astype(np.float32)),
            "quality": torch.tensor(float(row["quality"]), dtype=torch.float32),
            "subject": torch.tensor(int(row["subject"])),
            "case": f"{self.split}-{int(row['subject']):07d}",
        }


_VERSION = 1  # of the renderer; caches from other versions are not used


def _render(jobs: Sequence[Any], **options: Any) -> Arrays:
    arrays = make_rows(_render_row, jobs, **options)
    return {**arrays, "concept_names": arrays["concept_names"][0]}


def _render_row(job: tuple[str, str, int, tuple[int, int], float, float, int]) -> dict[str, Any]:
    """Render one case on the network's grid (a module-level function, so that processes can call it)."""
    name, split, seed, size, spacing, sp_fraction, index = job
    native, native_spacing = native_size(size, spacing)
    _, sample = draw_case(name, split, index, seed=seed, sp_fraction=sp_fraction, size=native, spacing=native_spacing)
    image, segmentation = on_grid(sample, size)
    return {
        "image": image,
        "segmentation": segmentation,
        "label": np.int64(sample.label),
        "concepts": np.array(list(sample.concepts.values()), np.float32),
        "quality": np.float32(sample.quality),
        "subject": np.int64(sample.subject),
        "concept_names": np.array(list(sample.concepts)),
    }


def native_size(size: tuple[int, int], spacing: float) -> tuple[tuple[int, int], float]:
    """Return the size and spacing at which an image is rendered before averaging to ``size`` and ``spacing``."""
    factor = spacing / _NATIVE_SPACING
    native = (round(size[0] * factor), round(size[1] * factor))
    return native, spacing * size[0] / native[0]


def on_grid(sample: PhantomSample, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image (gray values) and labels of a rendered sample on the network's grid, both with shape ``size``."""
    pixels = np.rint(shrink(sample.image, size) * 255.0).astype(np.uint8)
    return pixels, shrink_labels(sample.segmentation, size)


def to_tensors(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert them to an image in [-1, 1], float32, and labels, int64, both (1, H, W)."""
    image = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1.0
    return image[None], torch.from_numpy(labels.astype(np.int64))[None]


def shrink(image: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Average over areas."""
    image = image.astype(np.float64)
    rows, cols = image.shape[0] // size[0], image.shape[1] // size[1]
    if (rows * size[0], cols * size[1]) == image.shape:
        return image.reshape(size[0], rows, size[1], cols).mean(axis=(1, 3))
    return np.asarray(resize_local_mean(image, size, preserve_range=True), np.float64)


def shrink_labels(segmentation: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the most frequent label in each area; ties go to the rarer structures (larger labels)."""
    count = max(_LABELS, int(segmentation.max()) + 1)
    shares = [shrink(segmentation == label, size) for label in range(count)]
    return (count - 1 - np.argmax(np.stack(shares[::-1]), axis=0)).astype(np.uint8)
