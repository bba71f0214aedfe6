# SPDX-License-Identifier: Apache-2.0
"""What synthetic data cost a loader: ``python -m benchmarks.loader``.

One epoch of a MONAI pipeline over PNG files, with and without `medcf.transforms.RandSyntheticd`, in turn, in one
process. A throughput of at least .95 of the loader without it is the aim.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandFlipd,
    RandRotated,
    Resized,
    ScaleIntensityd,
)
from PIL import Image

from benchmarks.timing import interleaved, median_ratio
from medcf.data import StoreWriter
from medcf.transforms import RandSyntheticd

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Time both loaders and print the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="images of an epoch")
    parser.add_argument("--size", type=int, default=400, help="side of the files; the pipeline resizes to 128")
    parser.add_argument("--stored", type=int, default=2000, help="images of the store, 128 x 128")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        items, store = _files(Path(folder), options.count, options.size), _store(Path(folder), options.stored)
        load = [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ScaleIntensityd("image"),
            Resized("image", (128, 128)),
        ]
        augment = [RandFlipd("image", 0.5, 0), RandRotated("image", 0.5, 0.5)]
        for name, kind in (("Dataset", Dataset), ("CacheDataset", CacheDataset)):
            more = {} if kind is Dataset else {"progress": False}
            loaders = {
                "with": DataLoader(
                    kind(items, Compose([*load, RandSyntheticd("image", store, 0.5), *augment]), **more), batch_size=16
                ),
                "without": DataLoader(kind(items, Compose(load + augment), **more), batch_size=16),
            }
            runs = {key: (lambda loader=loader: [None for _ in loader]) for key, loader in loaders.items()}
            seconds = interleaved(runs, options.repeats, "cpu")
            rates = {key: options.count / statistics.median(values) for key, values in seconds.items()}
            ratio = median_ratio(seconds["without"], seconds["with"])
            sys.stdout.write(
                f"{name}: {rates['with']:.0f} images/s with, {rates['without']:.0f} without: throughput {ratio:.3f}\n"
            )


def _files(folder: Path, count: int, size: int) -> list[dict[str, object]]:
    generator = np.random.default_rng(0)
    items: list[dict[str, object]] = []
    for n in range(count):
        file = folder / f"{n}.png"
        noise = Image.fromarray(generator.integers(0, 255, (size // 8, size // 8), dtype=np.uint8))
        noise.resize((size, size), Image.Resampling.BICUBIC).save(file)
        items.append({"image": str(file), "label": n % 6})
    return items


def _store(folder: Path, count: int) -> Path:
    rows = [{"label": n % 6} for n in range(count)]
    writer = StoreWriter(folder / "store", rows, shape=(1, 128, 128))
    writer.open()
    for number, members in enumerate(writer.shards()):
        writer.write(number, torch.rand(len(members), 1, 128, 128) * 2 - 1)
    writer.close()
    return folder / "store"


if __name__ == "__main__":
    main()
