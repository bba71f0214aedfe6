# SPDX-License-Identifier: Apache-2.0
"""ControlCG at the paper's size: memory, time and operations of one volume of 80 x 96 x 80 and one target.

``python -m benchmarks.volume_size`` runs the first steps of the method with the network of ``paper.json`` and random
weights: guided and injected, that is four rows in one network call. A separate process measures: on a CPU the growth of
its resident memory (``ru_maxrss``), which includes the workspaces of kernels, and the tensors alive at once; on a GPU
the allocator's peak. Operations are counted on meta tensors, which computes nothing. The last line is JSON.

``--rows-at-once 1`` runs the blocks without attention on one row at a time. ``--targets 2 --memory-budget 4`` requests
two classes within 4 GB, and the method splits its rows into calls that fit. On a GPU all 50 steps run, and
``--peak-tflops`` gives the share of the GPU's peak. ``--small`` uses a tiny network and volume, to see that it works;
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import stopwatch
from medcf.bundle import bundle_folder
from medcf.inferers import AttentionInjectionInferer
from medcf.networks import AttentionInjection
from medcf.runtime.memory import peak_bytes
from medcf.runtime.performance import accelerate, autocast

SMALL: dict[str, Any] = {
    "spatial_size": [16, 16, 16],
    "network_def#channels": [8, 8, 16],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
}
REFERENCE = (2, 3, 2, 3)  # [x|c, x|null, y|c, y|null]
LIMIT = 6e9  # bytes that the method may take


class NoClassifier(nn.Module):
    """Takes every image for class 0: the classifier runs before and after, not in a step."""

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 2)."""
        return torch.tensor([1.0, 0.0], device=image.device).expand(len(image), 2)


def read_config(*, small: bool) -> ConfigParser:
    """Read ``inference.json`` with ``paper.json`` over it."""
    configs = bundle_folder("controlcg") / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / "inference.json"), str(configs / "paper.json")])
    parser.update({"gradient_checkpointing": False, **(SMALL if small else {})})
    return parser


def count_operations(network: nn.Module, size: list[int]) -> int:
    """Count the operations (two a multiply-add) of a step: four rows, of which two read the others.

    Args:
        network: denoising network; moved to the meta device.
        size: sides of the volume.
    """
    network = network.to("meta")
    rows = len(REFERENCE)
    image = torch.zeros(rows, 1, *size, device="meta")
    index = torch.zeros(rows, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, AttentionInjection(network) as injection:
        injection.reference = REFERENCE
        network(image, index, class_labels=index)
    return counter.get_total_flops()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run some steps of the method in this process and take its memory and time."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = read_config(small=options.small)
    config["network_def"]["rows_at_once"] = options.rows_at_once
    network = config.get_parsed_content("network_def").eval().requires_grad_(False).to(device)
    accelerate(network, channels_last=options.channels_last, compile=options.compile)
    inferer = AttentionInjectionInferer(
        config.get_parsed_content("scheduler"),
        NoClassifier(),
        target=1,
        guidance_scale=3.0,
        num_inference_steps=options.steps_timed,
        null_class_labels=2,
        memory_budget=options.memory_budget,
        progress=False,
    )
    size = config.get_parsed_content("spatial_size")
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    figures: dict[str, Any] = {}
    forwards: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))

    def run() -> None:
        forwards.clear()
        clock, wall = stopwatch(device), time.perf_counter()
        start = clock()
        with torch.no_grad(), autocast(device, enabled=options.amp):
            results = inferer.explain_targets(image, network, range(options.targets), run_unchanged=True)
        figures["seconds_per_step"] = (clock() - start) / options.steps_timed
        figures["wall_seconds_per_step"] = (time.perf_counter() - wall) / options.steps_timed
        total = sum(int(result.total_function_evaluations) for result in results.values())
        figures["rows"] = total // options.steps_timed

    if device.type == "cuda" or options.compile:
        run()  # chooses kernels, compiles
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures["tensor_bytes"] = peak_bytes(run, device)
    figures["process_bytes_before"] = before
    figures["process_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(p.nbytes for p in network.parameters())
    if device.type == "cuda":
        figures["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    else:
        figures["peak_bytes"] = figures["process_bytes"] - before + weights
    figures["weight_bytes"] = weights
    figures["rows_of_forwards"] = sorted(set(forwards))
    figures["device"] = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} thread"
    )
    return figures


def in_a_process(options: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in a process of its own, whose memory nothing else has touched."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.volume_size", "--measure", json.dumps(vars(options))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The measuring process failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(figures: dict[str, Any]) -> str:
    """Lay the figures out as Markdown."""
    peak, seconds, rate = (figures[key] for key in ("peak_bytes", "seconds_per_step", "operations_per_second"))
    timed = "" if figures["steps_timed"] == figures["steps"] else f", from {figures['steps_timed']} timed"
    share = f" ({rate / 1e12 / figures['peak_tflops']:.1%} of the peak)" if figures["peak_tflops"] else ""
    lines = [
        "| | |",
        "| --- | --- |",
        f"| volume, targets | {figures['volume']}, {figures['targets']} |",
        f"| rows of a step, of a forward | {figures['rows']}, {', '.join(map(str, figures['rows_of_forwards']))} |",
        f"| device, options | {figures['device']}, {figures['options']} |",
        f"| peak memory above the start, with the weights | **{peak / 1e9:.2f} GB**"
        f" ({'within' if peak <= LIMIT else 'ABOVE'} {LIMIT / 1e9:.0f} GB) |",
        f"| tensors alive at once | {figures['tensor_bytes'] / 1e9:.2f} GB |",
        f"| whole process | {figures['process_bytes'] / 1e9:.2f} GB |",
        f"| time of a step | {seconds:.3g} s (by the clock on the wall: {figures['wall_seconds_per_step']:.3g} s) |",
        f"| time of {figures['steps']} steps | {seconds * figures['steps']:.4g} s{timed} |",
        f"| operations of a step | {figures['operations_per_step'] / 1e12:.3f} TFLOP |",
        f"| operations of {figures['steps']} steps | {figures['operations'] / 1e15:.3f} PFLOP |",
        f"| achieved | {rate / 1e12:.3f} TFLOP/s{share} |",
    ]
    if figures["small"]:
        lines += ["", "SMALL network and volume: this shows that the program runs, not what the method takes."]
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, count, and put both together."""
    config = read_config(small=options.small)
    size = config.get_parsed_content("spatial_size")
    operations = count_operations(config.get_parsed_content("network_def"), size)
    figures = in_a_process(options)
    operations = operations * figures["rows"] // len(REFERENCE)  # nearly, where targets share a row
    chosen = [name for name in ("amp", "channels_last", "compile") if getattr(options, name)]
    if options.rows_at_once:
        chosen.append(f"rows_at_once {options.rows_at_once}")
    if options.memory_budget:
        chosen.append(f"memory_budget {options.memory_budget:g} GB")
    return {
        **figures,
        "volume": " x ".join(map(str, size)),
        "options": ", ".join(chosen) or "32 bits",
        "targets": options.targets,
        "steps": options.steps,
        "steps_timed": options.steps_timed,
        "peak_tflops": options.peak_tflops,
        "operations_per_step": operations,
        "operations": operations * options.steps,
        "operations_per_second": operations / figures["seconds_per_step"],
        "small": options.small,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.volume_size", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny network and volume, for a test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU")
    parser.add_argument("--steps", type=int, default=50, help="steps of a whole run, whose operations are counted")
    parser.add_argument("--steps-timed", type=int, help="steps to run (all on a GPU, otherwise 1)")
    parser.add_argument("--amp", action="store_true", help="compute in 16 bits")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile the network in the run before the measured one")
    parser.add_argument("--rows-at-once", type=int, help="rows processed at once in blocks without attention (all)")
    parser.add_argument("--targets", type=int, choices=(1, 2), default=1, help="number of target classes")
    parser.add_argument("--memory-budget", type=float, help="gigabytes for the activations of one network call")
    parser.add_argument("--peak-tflops", type=float, help="peak rate of the GPU, for the achieved fraction")
    options = parser.parse_args(arguments)
    if options.steps_timed is None:
        options.steps_timed = options.steps if options.device.startswith("cuda") else 1
    return options


def main(arguments: list[str] | None = None) -> None:
    """Print the table and the figures; with ``--measure`` (internal) those of this process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--measure"]:
        sys.stdout.write(json.dumps(measure(argparse.Namespace(**json.loads(arguments[1])))) + "\n")
        return
    figures = run(parse(arguments))
    sys.stdout.write(report(figures) + "\n\n" + json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
