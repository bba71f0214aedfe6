# SPDX-License-Identifier: Apache-2.0
"""The datasets of the training configs: phantoms, until the user names images of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

__all__ = ["training_dataset"]

logger = logging.getLogger(__name__)


def training_dataset(
    split: str = "train",
    *,
    datalist: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    phantom: str = "fetal_head",
    count: int = 1000,
    size: Sequence[int] = (64, 80),
    spacing: float = 1.75,
    seed: int = 0,
    sp_fraction: float = 0.45,
    cache_dir: str | Path | None = None,
    targets: Sequence[str] = ("label",),
    null_label: int | None = None,
    preprocessing: Callable[[torch.Tensor], torch.Tensor] | None = None,
    transform: Callable[[dict[str, Any]], Any] | None = None,
) -> Dataset:
    """Build the dataset of one split.

    Args:
        split: ``"train"``, ``"val"``, ``"oracle"`` or ``"test"``.
        datalist: CSV of the user's own images, see `medcf.training.image_dataset.ImageDataset`, or of volumes where
            ``size`` has three entries, see `medcf.data.volumes.VolumeDataset`; None renders phantoms.
        dataset_dir: folder that the paths of ``datalist`` are relative to; by default the folder of ``datalist``.
        phantom: name of the phantom: ``"fetal_head"`` (2D) or ``"brain_mri"`` (3D).
        count: number of phantoms.
        size: size (H, W) or (X, Y, Z) of the network's grid.
        spacing: spacing of the grid in mm.
        seed: seed of poses and speckle.
        sp_fraction: share of class 1 (standard planes, AD) among the phantoms.
        cache_dir: folder where the rendered phantoms, or the user's volumes on the grid, are kept; None makes them anew
            in every run. Under torchrun the main process renders, the others wait.
        targets: what the training needs beside the image; the user's images that lack one of them are left out.
            Phantoms have everything.
        null_label: class index of the user's images without a label; None: they are left out too.
        preprocessing: cleans the user's images before they are resampled, see `ImageDataset`; phantoms are clean.
        transform: applied to every sample, usually augmentation.

    Returns:
        Dataset of dictionaries with ``image`` (1, *size) in [-1, 1], ``label``, ``case``, and what else the source
        knows: ``segmentation``, ``concepts``, ``quality``.

    Raises:
        ValueError: ``dataset_dir`` was given without ``datalist``.
    """
    if datalist is not None:
        own: dict[str, Any] = {
            "dataset_dir": dataset_dir,
            "size": size,
            "spacing": spacing,
            "targets": targets,
            "null_label": null_label,
            "preprocessing": preprocessing,
            "transform": transform,
        }
        if len(size) == 3:
            from medcf.data.volumes import VolumeDataset

            cache_file = _cache_of_volumes(cache_dir, datalist, split, size, spacing)
            return VolumeDataset(datalist, split, cache_file=cache_file, **own)
        from medcf.training.image_dataset import ImageDataset

        return ImageDataset(datalist, split, **own)
    if dataset_dir is not None:
        raise ValueError("A training needs labels: name them with --datalist FILE.csv, beside --dataset_dir.")
    cache_file = None
    if cache_dir is not None:
        grid = "x".join(str(n) for n in size)
        name = f"{phantom}_{split}_{count}_{grid}_{spacing:g}mm_{sp_fraction:g}_seed{seed}.npz"
        cache_file = Path(cache_dir) / name
        cache_file.parent.mkdir(parents=True, exist_ok=True)
    waiting = dist.is_available() and dist.is_initialized() and cache_file is not None
    if waiting and dist.get_rank() > 0:
        dist.barrier()
    options: dict[str, Any] = {
        "seed": seed,
        "size": tuple(int(n) for n in size),
        "spacing": spacing,
        "cache_file": cache_file,
        "transform": transform,
    }
    dataset = _phantoms(phantom, split, count, sp_fraction, options)
    if waiting and dist.get_rank() == 0:
        dist.barrier()
    return dataset


def _cache_of_volumes(
    folder: str | Path | None, datalist: str | Path, split: str, size: Sequence[int], spacing: float
) -> Path | None:
    if folder is None:
        return None
    return Path(folder) / f"{Path(datalist).stem}_{split}_{'x'.join(str(n) for n in size)}_{spacing:g}mm.npz"


def _phantoms(phantom: str, split: str, count: int, fraction: float, options: dict[str, Any]) -> Dataset:
    if phantom == "brain_mri":
        from medcf.phantoms import BrainDataset

        return BrainDataset(split, count, ad_fraction=fraction, **options)
    from medcf.phantoms import PhantomDataset

    return PhantomDataset(phantom, split, count, sp_fraction=fraction, **options)
