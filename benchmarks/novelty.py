# SPDX-License-Identifier: Apache-2.0
"""How often a demo bundle flags an input as out of distribution, by kind of input.

``python -m benchmarks.novelty`` prints a Markdown table for phantoms unseen in training and for images that are
not heads; ``--bundle controlcg`` does so for volumes. ``--folder NAME=DIR`` (repeatable) adds a folder of images or
volumes, read and preprocessed as inference does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from medcf.bundle import bundle_folder
from medcf.data import Case, find_cases
from medcf.phantoms import DegradeBrain, PhantomDataset, write_brain_demo
from medcf.phantoms.brain.files import GEOMETRIES
from medcf.training.datasets import training_dataset

Kinds = Iterator[tuple[str, Tensor]]
Preprocessing = Callable[[dict[str, Any]], Mapping[str, Any]]

_GEOMETRIES = ("isotropic", "thick oblique axial slices", "sagittal slices", "tilted coronal slices")
_STRANGE = 100  # images of each kind that is none


def kinds(count: int) -> Kinds:
    """Yield kinds of images (N, 1, 64, 80) in [-1, 1] with their names.

    Args:
        count: number of phantoms.
    """
    phantoms = PhantomDataset(split="test", count=count, progress=False)
    images = torch.stack([item["image"] for item in phantoms])
    labels = torch.from_numpy(phantoms.labels)
    yield "phantoms of the split test, SP", images[labels == 1]
    yield "phantoms of the split test, NSP", images[labels == 0]
    some = images[:_STRANGE]
    yield "phantoms upside down", some.flip(2)
    turned = torch.nn.functional.interpolate(some.rot90(1, (2, 3)), size=some.shape[2:], mode="area")
    yield "phantoms rotated by 90 degrees", turned
    yield "phantoms with inverted gray values", -some
    yield from _nothing(some)


def volume_kinds(count: int, size: list[int], spacing: float, cache_dir: str | None) -> Kinds:
    """Yield kinds of volumes (N, 1, X, Y, Z) in [-1, 1] with their names.

    Args:
        count: number of phantoms.
        size: voxels of the network's grid.
        spacing: mm between them.
        cache_dir: folder where the rendered phantoms are kept.
    """
    phantoms: Any = training_dataset(
        "test", phantom="brain_mri", count=count, size=size, spacing=spacing, sp_fraction=0.5, cache_dir=cache_dir
    )
    items = [phantoms[index] for index in range(len(phantoms))]
    images = torch.stack([item["image"] for item in items])
    labels = torch.stack([item["label"] for item in items])
    yield "phantoms of the split test, CN", images[labels == 0]
    yield "phantoms of the split test, AD", images[labels == 1]
    some = images[:_STRANGE]
    yield "phantoms, left and right swapped", some.flip(2)
    if find_spec("torchio") is not None:
        for name, share in (("slightly poor scans", 0.5), ("poor scans", 1.0)):
            degrade = DegradeBrain(0.3 * share, 3 * share, 0.03 * share, keys=("image",), spacing=spacing)
            yield f"phantoms, {name}", torch.stack([degrade(item)["image"] for item in items[:_STRANGE]])
    yield "phantoms upside down", some.flip(4)
    yield "phantoms, front and back swapped", some.flip(3)
    turned = torch.nn.functional.interpolate(some.transpose(3, 4), size=some.shape[2:], mode="area")
    yield "phantoms lying down (two axes swapped)", turned
    yield "phantoms with inverted gray values", -some
    yield "phantoms with inverted gray values within the brain", torch.where(some > -1, -some, some)
    axes = torch.meshgrid(*(torch.linspace(-0.5, 0.5, n) * n * spacing for n in size), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    edges = torch.linspace(40, 90, 20)[:, None, None, None, None]  # mm
    yield "spheres of one gray value", torch.where(radius < edges, 0.5, -1.0)
    yield from _nothing(some)


def files_of_phantoms(count: int, preprocessing: Preprocessing) -> Kinds:
    """Yield phantoms that come as NIfTI files in the geometries of scanners, through the job's preprocessing.

    Args:
        count: number of phantoms, dealt out to the geometries.
        preprocessing: of the bundle.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = write_brain_demo(folder, "test", count)
        for number, name in enumerate(_GEOMETRIES):
            cases = [Case(record["case"], (Path(record["path"]),)) for record in records]
            yield f"phantoms in files, {name}", _preprocessed(cases[number :: len(GEOMETRIES)], preprocessing)


def _nothing(like: Tensor) -> Kinds:
    generator = torch.Generator().manual_seed(0)
    yield "uniform noise", torch.rand(like.shape, generator=generator) * 2 - 1
    levels = torch.linspace(-1, 1, len(like)).reshape(-1, *[1] * (like.ndim - 1))
    yield "blank images", levels.expand_as(like)


def _preprocessed(cases: list[Case], preprocessing: Preprocessing) -> Tensor:
    return torch.stack([preprocessing(case.item())["image"].as_subclass(Tensor) for case in cases])


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.novelty", description=__doc__)
    parser.add_argument("--bundle", choices=("diffice", "controlcg"), default="diffice")
    parser.add_argument("--count", type=int, help="number of phantoms (default 800; for brains 200)")
    parser.add_argument("--files", type=int, default=100, help="number of phantoms in files (controlcg)")
    parser.add_argument("--cache_dir", help="folder for caching rendered brains")
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR", help="a folder of images")
    parser.add_argument("--limit", type=int, default=100, help="images per folder, spread evenly over its list")
    options = parser.parse_args(arguments)
    volumes = options.bundle == "controlcg"
    root = bundle_folder(options.bundle)
    config = ConfigParser()
    config.read_config(str(root / "configs" / "inference.json"))
    config.update({"device": "cpu", "bundle_root": str(root)})
    detector = config.get_parsed_content("novelty")
    preprocessing = config.get_parsed_content("preprocessing")

    def folders() -> Kinds:
        for entry in options.folder:
            name, _, folder = entry.partition("=")
            cases, _ = find_cases(folder, spatial_dims=3 if volumes else 2)
            step = max(1, len(cases) // options.limit)
            yield name, _preprocessed(cases[::step][: options.limit], preprocessing)

    sources = [folders()]
    if volumes:
        grid = (config["spatial_size"], config["spacing"])
        files = [files_of_phantoms(options.files, preprocessing)] if options.files else []
        sources = [volume_kinds(options.count or 200, *grid, options.cache_dir), *files, *sources]
    else:
        sources = [kinds(options.count or 800), *sources]
    sys.stdout.write("| images | number | flagged | lowest novelty |\n|---|---|---|---|\n")
    for source in sources:
        for name, images in source:
            scores = torch.cat([detector(part)["novelty"] for part in images.split(64)])
            share = float((~(scores <= 1)).float().mean())
            sys.stdout.write(f"| {name} | {len(images)} | {share:.1%} | {float(scores.min()):.2f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
