# SPDX-License-Identifier: Apache-2.0
"""How often the demo bundle flags an input as out of distribution, by kind of input.

``python -m benchmarks.novelty`` prints a Markdown table for phantoms that no training has seen and for images that are
no heads; ``--folder NAME=DIR`` (repeatable) adds a folder of images, read and preprocessed as inference does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from medcf.bundle import find_bundle_root
from medcf.data.datalist import build_datalist
from medcf.data.phantoms import PhantomDataset


def kinds(count: int) -> Iterator[tuple[str, Tensor]]:
    """Yield kinds of images (N, 1, 64, 80) in [-1, 1] with their names.

    Args:
        count: number of phantoms.
    """
    phantoms = PhantomDataset(split="test", count=count, progress=False)
    images = torch.stack([item["image"] for item in phantoms])
    labels = torch.from_numpy(phantoms.labels)
    generator = torch.Generator().manual_seed(0)
    yield "phantoms of the split test, SP", images[labels == 1]
    yield "phantoms of the split test, NSP", images[labels == 0]
    some = images[:100]
    yield "phantoms upside down", some.flip(2)
    turned = torch.nn.functional.interpolate(some.rot90(1, (2, 3)), size=some.shape[2:], mode="area")
    yield "phantoms turned by a quarter", turned
    yield "phantoms with inverted gray values", -some
    yield "uniform noise", torch.rand(some.shape, generator=generator) * 2 - 1
    yield "blank images", torch.linspace(-1, 1, len(some))[:, None, None, None].expand_as(some)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.novelty", description=__doc__)
    parser.add_argument("--count", type=int, default=800, help="number of phantoms")
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR", help="a folder of images")
    parser.add_argument("--limit", type=int, default=100, help="images of a folder, evenly over its list")
    options = parser.parse_args()
    config = ConfigParser()
    config.read_config(str(Path(find_bundle_root("diffice")) / "configs" / "inference.json"))
    config["device"] = "cpu"
    detector = config.get_parsed_content("novelty")
    preprocessing = config.get_parsed_content("preprocessing")

    def folders() -> Iterator[tuple[str, Tensor]]:
        for entry in options.folder:
            name, _, folder = entry.partition("=")
            cases, _ = build_datalist(folder)
            step = max(1, len(cases) // options.limit)
            chosen = cases[::step][: options.limit]
            yield name, torch.stack([torch.as_tensor(preprocessing(dict(case))["image"]) for case in chosen])

    sys.stdout.write("| images | number | flagged | lowest novelty |\n|---|---|---|---|\n")
    for source in (kinds(options.count), folders()):
        for name, images in source:
            scores = torch.cat([detector(part)["novelty"] for part in images.split(64)])
            share = float((scores > 1).float().mean())
            sys.stdout.write(f"| {name} | {len(images)} | {share:.1%} | {float(scores.min()):.2f} |\n")


if __name__ == "__main__":
    main()
