# SPDX-License-Identifier: Apache-2.0
"""Whole counterfactuals on onnxruntime against eager torch, on a CPU, alternately in one process.

``python -m benchmarks.onnx`` exports a bundle's denoiser into a temporary folder, explains phantoms with each backend
(reading, grid, method, classifier, scores), and prints the time of each, the ratio, and how much the results differ.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import medcf
from benchmarks.timing import interleaved, median_ratio
from medcf.bundle import export_bundle
from medcf.inference import list_cases

__all__ = ["Disturbed", "measure"]

#: Precision of eager torch: what the bundle chooses on this processor, and 32 bits as in onnxruntime.
EAGER = {"eager": False, "eager, amp auto": "auto"}

#: Standard deviation of the noise by which rounding is imitated.
NOISE = 1e-6


class Disturbed(nn.Module):
    """A network with noise of the size of rounding added, the control of what rounding does to a result."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.module = network
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor, **given: Any) -> torch.Tensor:
        """Return the network's prediction and noise."""
        predicted: torch.Tensor = self.module(x, **given)
        return predicted + NOISE * torch.randn(predicted.shape, generator=self.generator)


def measure(bundle: str, method: str, images: int, repeats: int, steps: int | None = None) -> dict[str, Any]:
    """Time a bundle's method on each backend.

    Args:
        bundle: name of a bundle that explains.
        method: a method without gradients through the network and without injection.
        images: number of phantoms, explained together.
        repeats: measured runs of each backend.
        steps: kept steps of the schedule; None means the bundle's.

    Returns:
        Seconds per run and backend, their ratios to onnxruntime's, the largest difference between the counterfactuals
        in 32 bits, that of eager torch with `NOISE` added to its predictions, and whether onnxruntime ran.
    """
    options: dict[str, Any] = {"device": "cpu", "method": method, "progress": False}
    if steps is not None:
        options["inferer#num_inference_steps"] = steps
    with tempfile.TemporaryDirectory() as folder:
        file, _ = export_bundle(bundle, "onnx", folder)
        explainers = {name: medcf.load(bundle, amp=amp, **options) for name, amp in EAGER.items()}
        explainers["onnxruntime"] = medcf.load(bundle, amp=False, backend="onnxruntime", onnx_file=str(file), **options)
        disturbed = medcf.load(bundle, amp=False, **options)
        disturbed.network = Disturbed(disturbed.network)
        listing = {**explainers["eager"].listing, "demo_count": images}
        cases = list_cases(None, None, Path(folder) / "out", listing).cases[:images]
        results = {name: explain.batch(cases) for name, explain in explainers.items()}
        results["disturbed"] = disturbed.batch(cases)
        seconds = interleaved({name: lambda e=e: e.batch(cases) for name, e in explainers.items()}, repeats, "cpu")
    ours = seconds["onnxruntime"]
    return {
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "ratios": {name: median_ratio(each, ours) for name, each in seconds.items()},
        "difference": _difference(results["onnxruntime"], results["eager"]),
        "disturbed": _difference(results["disturbed"], results["eager"]),
        "ran": type(explainers["onnxruntime"].network).__name__ == "OnnxNetwork",
        "flipped": {name: sum(bool(each.row["flipped"]) for each in found) for name, found in results.items()},
    }


def _difference(found: Any, expected: Any) -> float:
    """Return the largest difference between counterfactuals on the grid."""
    return max(
        float((torch.as_tensor(a.on_grid["pred"]) - torch.as_tensor(b.on_grid["pred"])).abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx", description=__doc__)
    parser.add_argument("--bundle", default="diffice")
    parser.add_argument("--method", default="ddim_inversion")
    parser.add_argument("--images", type=int, default=4, help="phantoms, explained together")
    parser.add_argument("--steps", type=int, help="kept steps of the schedule (default: the bundle's)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="with one, processor time is measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    found = measure(options.bundle, options.method, options.images, options.repeats, options.steps)
    sys.stdout.write("| backend | seconds | / onnxruntime | flipped |\n| --- | --- | --- | --- |\n")
    for name, seconds in found["seconds"].items():
        line = f"| {name} | {seconds:.2f} | {found['ratios'][name]:.2f} | {found['flipped'][name]} |\n"
        sys.stdout.write(line)
    sys.stdout.write(
        f"\nLargest difference of the results, onnxruntime and eager: {found['difference']:.1e}; eager with noise of "
        f"{NOISE:g} on its predictions: {found['disturbed']:.1e}.\n"
    )
    if not found["ran"]:
        sys.stdout.write("The method needs the network itself: everything ran eager.\n")


if __name__ == "__main__":
    main()
