# SPDX-License-Identifier: Apache-2.0
"""Results of every method on the demo cases, stored so that a refactoring can show that they do not change.

``python -m benchmarks.golden tests/golden/results.npz`` writes, for four demo cases of each bundle, the tensors on the
network's grid and every method's results on these STORED tensors: explicit ids, one pass, one scale, no confidence
threshold, float32, one thread, batch 1. For each result it stores a fixed sample of pixels and the confidences.
``--compare`` repeats this and prints the largest differences.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray

__all__ = ["METHODS", "SAMPLES", "grids", "results", "sample"]

ROOT = Path(__file__).parents[1]
COUNT = 4
SAMPLES = 1500  # pixels of a result that are kept
UNIVERSAL = ("attack", "controlcg", "ddim_inversion", "diffice", "diffice_single", "fastdime", "ilvr", "sdedit",
             "unchanged", "universal")  # fmt: skip
METHODS = {"diffice": (*UNIVERSAL, "dime"), "controlcg": UNIVERSAL}
Arrays = dict[str, NDArray[np.float32]]


def open_bundle(bundle: str, **overrides: Any) -> ConfigParser:
    """Parse a bundle's inference config with options, without running it."""
    folder = ROOT / "bundles" / bundle
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.update({"bundle_root": str(folder), "device": "cpu", "amp": False, "progress": False} | overrides)
    return parser


def grids(bundle: str, folder: str | Path) -> Arrays:
    """Put the bundle's demo cases onto the grid, as its job does; by case."""
    parser = open_bundle(bundle, output_dir=str(folder))
    cases = parser.get_parsed_content("case_list").cases[:COUNT]
    prepare = parser.get_parsed_content("preprocessing")
    return {case.id: prepare(case.item())["image"].numpy() for case in cases}


def results(bundle: str, method: str, images: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """Explain tensors on the grid, one by one; by case the kept pixels and the confidences."""
    single = {
        "num_iterations": 1,
        "classifier_scales": [30],
        "confidence_threshold": None,
        "num_inference_steps": 20,
    }
    overrides: dict[str, Any] = {f"shared_options#{name}": value for name, value in single.items()}
    parser = open_bundle(bundle, method=method, channels_last=False, **overrides)
    inferer, network = (parser.get_parsed_content(name) for name in ("inferer", "network"))
    found = {}
    for case, image in images.items():
        result = inferer.explain(torch.from_numpy(image)[None], network, [case])
        found[f"{case}/pixels"] = sample(result.image[0].numpy())
        found[f"{case}/confidences"] = result.confidences[0].numpy().astype(np.float32)
    return found


def sample(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep the same random pixels of every image of one shape."""
    chosen = np.random.default_rng(0).choice(image.size, min(SAMPLES, image.size), replace=False)
    return image.astype(np.float32).ravel()[np.sort(chosen)]


def main() -> int:
    """Write the file, or compare with it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.golden", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--compare", action="store_true", help="compare with the file instead of writing it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: Arrays = dict(np.load(options.file)) if options.compare else {}
    found: Arrays = {}
    for bundle, methods in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            made = grids(bundle, folder)
        found |= {f"{bundle}/grid/{case}": image for case, image in made.items()}
        if kept:
            made = {case: kept[f"{bundle}/grid/{case}"] for case in made}
        for method in methods:
            found |= {f"{bundle}/{method}/{name}": each for name, each in results(bundle, method, made).items()}
            sys.stderr.write(f"{bundle} {method}\n")
    if not options.compare:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(options.file, **found)
        return 0
    worst = {name: float(np.abs(kept[name] - found[name]).max()) for name in kept}
    groups = sorted({name.rsplit("/", 2)[0] if "/grid/" not in name else name.rsplit("/", 1)[0] for name in kept})
    for group in groups:
        largest = max(value for name, value in worst.items() if name.startswith(f"{group}/"))
        sys.stdout.write(f"{group}: {largest:.2e}\n")
    return int(max(worst.values()) > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
