# SPDX-License-Identifier: Apache-2.0
"""How close each solver comes to the exact probability flow, by number of steps and rule of spacing.

``python -m benchmarks.solvers`` denoises data N(0.3, 0.5²) from noise. The perfect denoiser is known, so the whole
error is the solver's: |spread of the samples / exact spread - 1|.

``python -m benchmarks.solvers --count 4`` denoises so many phantoms from half of the noise with the denoiser of the
bundle diffice. The error is the root mean square difference from PNDM with every second timestep, in gray values of
[-1, 1].
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch
from monai.bundle import ConfigParser

from medcf.bundle import bundle_folder
from medcf.networks import Denoiser
from medcf.phantoms import PhantomDataset
from medcf.sampling import denoise
from medcf.schedulers import RespacedScheduler, create_scheduler

__all__ = ["on_gaussian", "on_phantoms"]

SOLVERS = ("ddim", "euler", "dpmpp", "unipc", "pndm")
SPACINGS = ("respaced", "trailing")
STEPS = (6, 10, 20, 50)
MEAN, STD = 0.3, 0.5


def on_gaussian(scheduler: RespacedScheduler) -> float:
    """Return |spread / exact spread - 1| of two samples that start one apart and are perfectly denoised."""
    sample = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    for t in scheduler.timesteps.tolist():
        a = scheduler.alpha_bar(t)
        gain = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        original = MEAN + gain * (sample - math.sqrt(a) * MEAN)
        noise = (sample - math.sqrt(a) * original) / math.sqrt(1 - a)
        sample, _ = scheduler.step(noise, t, sample)
    a = scheduler.alpha_bar(scheduler.kept[-1])
    return abs(float(sample.diff()) / (STD / math.sqrt(a * STD**2 + 1 - a)) - 1)


def on_phantoms(count: int) -> Callable[[RespacedScheduler], float]:
    """Return a function that measures a scheduler's error on so many phantoms."""
    parser, root = ConfigParser(), bundle_folder("diffice")
    parser.read_config(str(root / "configs" / "inference.json"))
    parser.update({"bundle_root": str(root), "device": "cpu"})
    network = parser.get_parsed_content("network").eval()
    phantoms = PhantomDataset(split="demo", count=count, progress=False)
    images = torch.stack([phantoms[index]["image"] for index in range(count)])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))

    def run(scheduler: RespacedScheduler) -> torch.Tensor:
        start = scheduler.add_noise(images, noise, scheduler.kept[-1])
        denoiser = Denoiser(network, scheduler, class_labels=2)
        with torch.no_grad():
            return denoise(denoiser, scheduler, start, scheduler.timesteps.tolist())

    reference = run(make("pndm", 250, "respaced", top=499))
    return lambda scheduler: float((run(scheduler) - reference).square().mean().sqrt())


def make(name: str, steps: int, spacing: str, top: int = 999) -> RespacedScheduler:
    """Create a solver with so many steps below a timestep; ``top`` is the first one, whatever the rule."""
    scheduler: RespacedScheduler = create_scheduler(name, clip_sample=False)
    if spacing == "trailing":
        scheduler.keep([round((i + 1) * (top + 1) / steps) - 1 for i in range(steps)])
    else:
        scheduler.keep([round(i * top / (steps - 1)) for i in range(steps)])
    return scheduler


def main(arguments: list[str]) -> None:
    """Print one table per rule of spacing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="number of phantoms; 0 measures on Gaussian data")
    count = parser.parse_args(arguments).count
    error, top = (on_phantoms(count), 499) if count else (on_gaussian, 999)
    for spacing in SPACINGS:
        print(f"| {spacing} | " + " | ".join(map(str, STEPS)) + " |")
        for name in SOLVERS:
            row = [f"{error(make(name, steps, spacing, top)):.4f}" for steps in STEPS]
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
