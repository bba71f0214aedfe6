# SPDX-License-Identifier: Apache-2.0
"""How close each solver comes to the exact probability flow of data N(0.3, 0.5²), by number of steps and spacing.

``python -m benchmarks.solvers`` prints the error of the standard deviation of the samples as a fraction of the exact
one. The perfect denoiser is known, so that the whole error is the solver's.
"""

from __future__ import annotations

import math

import torch

from medcf.schedulers import RespacedScheduler, create_scheduler

__all__ = ["relative_error"]

SOLVERS = ("ddim", "euler", "dpmpp", "unipc", "pndm")
STEPS = (10, 20, 50, 100)
MEAN, STD = 0.3, 0.5


def relative_error(scheduler: RespacedScheduler, strength: float) -> float:
    """Return |spread / exact spread - 1| of two samples that start one apart and are perfectly denoised."""
    timesteps = scheduler.timesteps_from(strength)
    sample = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    for t in timesteps:
        a = scheduler.alpha_bar(t)
        gain = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
        original = MEAN + gain * (sample - math.sqrt(a) * MEAN)
        noise = (sample - math.sqrt(a) * original) / math.sqrt(1 - a)
        sample, _ = scheduler.step(noise, t, sample)
    a = scheduler.alpha_bar(timesteps[0])
    return abs(float(sample.diff()) / (STD / math.sqrt(a * STD**2 + 1 - a)) - 1)


def main() -> None:
    """Print the tables."""
    for strength in (1.0, 0.5):
        for spacing in ("respaced", "trailing"):
            print(f"strength {strength}, spacing {spacing}\n| solver | " + " | ".join(map(str, STEPS)) + " |")
            for name in SOLVERS:
                errors = []
                for steps in STEPS:
                    scheduler = create_scheduler(name, clip_sample=False, spacing=spacing)
                    scheduler.set_timesteps(steps)
                    errors.append(f"{relative_error(scheduler, strength):.1%}")
                print(f"| {name} | " + " | ".join(errors) + " |")


if __name__ == "__main__":
    main()
