# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE at the paper's size: time, memory, and the fraction of the GPU's peak that it uses.

``python -m benchmarks.paper_size`` runs a batch of 10 images of 224 x 288 through 5 passes of 120 steps (of 400) with
the networks of ``paper.json`` and random weights, at one classifier scale. It counts the floating-point operations of
the networks' calls, measures the device's rate of large 16-bit matrix products, and prints the share of that rate.

``--small`` runs the same program with tiny networks on tiny images, as a check; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.paper import PAPER, SMALL, Networks, build, images_and_target
from medcf.inferers import DiffICEInferer
from medcf.runtime.performance import accelerate, autocast, half_precision
from medcf.schedulers import RespacedDDPMScheduler


def count_operations(networks: Networks, batch: int) -> dict[str, int]:
    """Count the operations of one step's calls, on meta tensors, which computes nothing.

    Args:
        networks: the networks.
        batch: images of the batch.

    Returns:
        Operations (two a multiply-add) of a ``denoiser`` forward, and of the forward and backward of ``classifier``
        and ``perceptual``.
    """
    image = torch.zeros(batch, 1, *networks.size, device="meta")
    timesteps = torch.zeros(batch, dtype=torch.long, device="meta")

    def count(network: nn.Module, *inputs: Tensor, backward: bool) -> int:
        ghost = copy.deepcopy(network).to("meta")
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            first = inputs[0].clone().requires_grad_(backward)
            outputs = ghost(first, *inputs[1:])
            if backward:
                outputs = outputs if isinstance(outputs, list) else [outputs]
                # not autograd.grad, which the counter's hooks cannot follow to a leaf
                torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        return counter.get_total_flops()

    return {
        "denoiser": count(networks.denoiser, image, timesteps, backward=False),
        "classifier": count(networks.classifier, image, backward=True),
        "perceptual": count(networks.perceptual, image, backward=True),
    }


def matrix_rate(device: torch.device, size: int, repeats: int = 20) -> float:
    """Measure the best rate of square matrix products in 16 bits.

    Args:
        device: where to compute.
        size: rows and columns.
        repeats: measured products.

    Returns:
        Operations a second.
    """
    left, right = (torch.randn(size, size, device=device, dtype=half_precision(device)) for _ in range(2))
    seconds = []
    for number in range(repeats + 3):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        if number >= 3:  # the first ones choose kernels and raise the clock
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the method and relate its time to its operations.

    Args:
        options: device, batch, steps, iterations and the options of speed.

    Returns:
        ``seconds`` of each repeat, ``operations`` of one run by network, ``rate`` achieved, ``matrix_rate``, their
        ``share`` and ``peak`` memory in bytes (None on a CPU).
    """
    device = torch.device(options.device)
    networks = build(device, SMALL if options.small else PAPER)
    images, target = images_and_target(networks, options.batch, device)
    inferer = DiffICEInferer(
        RespacedDDPMScheduler(num_train_timesteps=1000),
        networks.classifier,
        target=target,
        perceptual=networks.perceptual,
        num_inference_steps=options.steps,
        strength=options.strength,
        num_iterations=options.iterations,
        classifier_scales=(40,),
        progress=options.progress,
    )
    steps = len(inferer.timesteps) * options.iterations
    operations = {name: count * steps for name, count in count_operations(networks, options.batch).items()}
    mode = "reduce-overhead" if options.cuda_graphs else options.compile
    accelerate(networks.denoiser, channels_last=options.channels_last, compile=mode)
    for network in (networks.classifier, networks.perceptual):
        accelerate(network, channels_last=options.channels_last)
    seconds = []
    for number in range(options.repeats + options.warm_up):
        if number == options.warm_up and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _wait(device)
        start = time.perf_counter()
        with torch.no_grad(), autocast(device, enabled=options.amp):
            result = inferer.explain(images, networks.denoiser)
        _wait(device)
        if number >= options.warm_up:
            seconds.append(time.perf_counter() - start)
    if result.total_function_evaluations != steps * options.batch:
        raise RuntimeError(
            f"{result.total_function_evaluations} network evaluations ran instead of {steps * options.batch}."
        )
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    best = matrix_rate(device, 512 if options.small else 8192 if device.type == "cuda" else 2048)
    rate = sum(operations.values()) / statistics.median(seconds)
    return {
        "seconds": seconds, "operations": operations, "rate": rate, "matrix_rate": best, "share": rate / best,
        "peak": peak, "images": options.batch, "steps": steps,
    }  # fmt: skip


def report(result: dict[str, Any], options: argparse.Namespace) -> str:
    """Lay the result of `measure` out as Markdown."""
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    chosen = [name for name in ("amp", "channels_last", "compile", "cuda_graphs") if getattr(options, name)]
    total = sum(result["operations"].values())
    parts = ", ".join(f"{name} {count / total:.0%}" for name, count in result["operations"].items())
    peak = "not measured on a CPU" if result["peak"] is None else f"{result['peak'] / 2**30:.2f} GiB"
    lines = ["| | |", "|---|---|"]
    lines += [
        f"| device | {name} |",
        f"| options | {', '.join(chosen) or 'none'} |",
        f"| images, steps of all passes | {result['images']}, {result['steps']} |",
        f"| operations of the networks | {total / 1e12:.4g} TFLOP ({parts}) |",
        f"| seconds (median of {len(result['seconds'])}) | {statistics.median(result['seconds']):.2f} |",
        f"| achieved | {result['rate'] / 1e12:.3g} TFLOP/s |",
        f"| measured 16-bit matrix rate | {result['matrix_rate'] / 1e12:.3g} TFLOP/s |",
        f"| share of it | {result['share']:.1%} |",
        f"| peak memory | {peak} |",
    ]
    if options.small:
        lines += ["", "SMALL networks and images: this shows that the program runs, not how fast the method is."]
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``--small`` sets what was not given to the least."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_size", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny networks, images and steps, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="number of images (10)")
    parser.add_argument("--steps", type=int, help="kept steps of the schedule (400)")
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--iterations", type=int, help="number of passes (5)")
    parser.add_argument("--repeats", type=int, help="number of measured runs (3)")
    parser.add_argument("--warm-up", type=int, default=1, help="runs before the measured ones")
    parser.add_argument("--amp", action="store_true", help="compute in 16 bits")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser")
    parser.add_argument("--cuda-graphs", action="store_true", help="compile the denoiser into CUDA graphs")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    full, small = (10, 400, 5, 3), (2, 10, 2, 1)
    for name, large, least in zip(("batch", "steps", "iterations", "repeats"), full, small, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, least if options.small else large)
    return options


def main() -> None:
    """Print the table."""
    options = parse()
    sys.stdout.write(report(measure(options), options) + "\n")


if __name__ == "__main__":
    main()
