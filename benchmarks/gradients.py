# SPDX-License-Identifier: Apache-2.0
"""Cost of one Diff-ICE pass with each gradient estimator: same networks, same images, same machine, one run.

``python -m benchmarks.gradients`` prints a Markdown table: seconds and their ratio to ``x0``, denoiser evaluations
per image, and the peak memory of the pass above that of the process before it. Each estimator runs in a separate
process. Weights are random: time and memory do not depend on their values.

``--paper-size`` uses the networks of ``paper.json`` on images of 224 x 288, 120 of 400 steps and a batch of 10; if
that takes too long, ``--images`` and ``--steps-timed`` measure a part of it, from which the time of all steps is
extrapolated: the denoiser and the rest of a step are timed separately, and DiME's network calls are counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.paper import PAPER, Networks, build, images_and_target
from benchmarks.timing import stopwatch
from medcf.inferers import DiffICEInferer
from medcf.schedulers import RespacedDDPMScheduler

ESTIMATORS = ("x0", "xt", "dime")


def demo_size(height: int, width: int) -> dict[str, Any]:
    """Return the changes that turn the paper's networks into ones of the demo's size."""
    return {
        "spatial_size": [height, width],
        "network_def#channels": [32, 64, 96],
        "network_def#attention_levels": [False, False, True],
        "network_def#num_res_blocks": 1,
        "network_def#norm_num_groups": 8,
        "network_def#num_head_channels": 32,
        "network_def#resblock_updown": False,
        "predictor_def#max_features": 64,
    }


class FirstSteps(DiffICEInferer):
    """Diff-ICE that runs the first ``limit`` steps of a pass only."""

    limit: int | None = None

    def schedule(self, number: int) -> tuple[list[int], int | None]:
        """Return the first steps of a pass."""
        timesteps, start = super().schedule(number)
        return timesteps[: self.limit], start


class Meter:
    """Seconds and calls of the denoiser inside a pass.

    Args:
        network: the denoiser.
        device: where it runs.
    """

    def __init__(self, network: nn.Module, device: str) -> None:
        self.clock = stopwatch(device)
        self.seconds = 0.0
        self.calls = 0
        network.register_forward_pre_hook(lambda *_: self._start())
        network.register_forward_hook(lambda *_: self._stop())

    def _start(self) -> None:
        self.begun = self.clock()

    def _stop(self) -> None:
        self.seconds += self.clock() - self.begun
        self.calls += 1


class Memory:
    """Peak memory of a stretch of the program above what was held when it began, in MiB.

    On a GPU the allocator's; on a CPU the resident set, whose peak Linux lets a process reset.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 2**20
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _resident("VmRSS")

    def peak(self) -> float:
        """Return the peak since the beginning."""
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        return _resident("VmHWM") - self.before


def _resident(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) / 2**10


def measure(estimator: Literal["x0", "xt", "dime"], options: argparse.Namespace) -> dict[str, float]:
    """Time one pass in this process.

    Args:
        estimator: ``gradient`` of the inferer.
        options: size, images, steps and device.

    Returns:
        ``seconds`` of all steps (extrapolated where fewer were timed), ``measured`` seconds, forwards of the denoiser
        per image over all steps, memory of the process ``before`` the pass and its ``peak`` above that in MiB.
    """
    torch.set_num_threads(options.threads)
    networks = build(options.device, PAPER if options.paper_size else demo_size(options.height, options.width))
    images, target = images_and_target(networks, options.images, options.device)
    inferer = FirstSteps(
        RespacedDDPMScheduler(num_train_timesteps=1000),
        networks.classifier,
        target=target,
        perceptual=networks.perceptual,
        num_inference_steps=options.steps,
        strength=options.strength,
        num_iterations=1,
        classifier_scales=(40,),
        gradient=estimator,
        progress=False,
    )
    memory = Memory(options.device)  # before the warm-up, whose memory a CPU's allocator may keep
    steps = len(inferer.timesteps)
    timed = min(options.steps_timed or steps, steps)
    if not options.cold:
        inferer.limit = 1
        inferer.explain(images, networks.denoiser)
    inferer.limit = timed
    clock = stopwatch(options.device)
    aside = _outside_of_steps(networks, images, options.device)
    meter, start = Meter(networks.denoiser, options.device), clock()
    inferer.explain(images, networks.denoiser)
    measured = clock() - start
    forward = meter.seconds / meter.calls
    rest = (measured - meter.seconds - aside) / timed
    forwards = steps * (steps + 1) // 2 if estimator == "dime" else steps
    seconds = measured if timed == steps else forwards * forward + steps * rest + aside
    return {
        "seconds": seconds, "measured": measured, "timed": timed, "steps": steps, "evaluations": forwards,
        "before": memory.before, "peak": memory.peak(),
    }  # fmt: skip


def _outside_of_steps(networks: Networks, images: torch.Tensor, device: str) -> float:
    """Time what a pass calls once: two judgements and the features of the originals."""
    clock = stopwatch(device)
    start = clock()
    with torch.no_grad():
        networks.classifier(images)
        networks.classifier(images)
        networks.perceptual(images)
    return clock() - start


def table(rows: dict[str, dict[str, float]], images: int) -> str:
    """Lay the measurements of `measure` out as Markdown.

    Args:
        rows: estimator to measurements; ``x0`` is what the others are divided by.
        images: images of the batch.
    """
    base = rows["x0"]
    lines = [
        "| gradient | seconds | time / x0 | evaluations per image | peak MiB above the start | peak / x0 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['seconds']:.2f} | {row['seconds'] / base['seconds']:.2f} | {row['evaluations']:.0f} | "
        f"{row['peak']:.0f} | {row['peak'] / base['peak']:.2f} |"
        for name, row in rows.items()
    ]
    timed, steps = int(base["timed"]), int(base["steps"])
    how = f"{steps} steps, {images} images, all measured"
    if timed < steps:
        how = f"{images} images; EXTRAPOLATED to {steps} steps from {timed} timed ones"
    return "\n".join([*lines, "", f"One pass at one scale, {how}. Held before the pass: {base['before']:.0f} MiB."])


def main() -> None:
    """Measure every estimator in a process of its own and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--paper-size", action="store_true", help="networks, images and steps as in the paper")
    parser.add_argument("--images", type=int, help="images per batch (4; at paper size 10)")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--steps", type=int, help="kept steps of the schedule (40; at paper size 400)")
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--steps-timed", type=int, help="measure this many steps of the pass and extrapolate")
    parser.add_argument("--cold", action="store_true", help="skip the warm-up step")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU; with one, processor time is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=ESTIMATORS, help="measure one estimator and print it as JSON")
    options = parser.parse_args()
    options.images = options.images or (10 if options.paper_size else 4)
    options.steps = options.steps or (400 if options.paper_size else 40)
    if options.only:
        sys.stdout.write(json.dumps(measure(options.only, options)) + "\n")
        return
    rows = {}
    for estimator in ESTIMATORS:
        command = [sys.executable, "-m", "benchmarks.gradients", *sys.argv[1:], "--only", estimator]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[estimator] = json.loads(result.stdout.splitlines()[-1])
    sys.stdout.write(table(rows, options.images) + "\n")


if __name__ == "__main__":
    main()
