# SPDX-License-Identifier: Apache-2.0
"""Effect of ``amp``, ``channels_last`` and ``compile`` on the time of the demo's denoiser.

``python -m benchmarks.options`` prints a Markdown table: milliseconds per network call for a batch, the speedup over
no options, and the change of the prediction. ``--compile`` adds the compiled rows, which take minutes to prepare.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from itertools import product

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.timing import interleaved
from medcf.bundle import bundle_folder
from medcf.runtime.performance import accelerate, autocast


def forward(device: str, batch: int, *, amp: bool, channels_last: bool, compile: bool) -> Callable[[], Tensor]:
    """Return a function that runs the demo's denoiser once on a fixed noisy batch.

    Args:
        device: where to compute.
        batch: number of images of 64 x 80.
        amp: compute in 16 bits.
        channels_last: see `accelerate`.
        compile: see `accelerate`.
    """
    parser = ConfigParser()
    root = bundle_folder("diffice")
    parser.read_config(str(root / "configs" / "inference.json"))
    parser["bundle_root"] = str(root)
    parser["device"] = device
    network = accelerate(parser.get_parsed_content("network"), channels_last=channels_last, compile=compile)
    sample = torch.randn(batch, 1, 64, 80, generator=torch.Generator().manual_seed(0)).to(device)
    timesteps = torch.full((batch,), 300, device=device)
    labels = torch.full((batch,), 2, device=device)

    @torch.no_grad()
    def run() -> Tensor:
        with autocast(device, enabled=amp):
            return network(sample, timesteps=timesteps, class_labels=labels).float()

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.options", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also compile")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU; with one, processor time is measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    functions = {}
    for compiled, amp, channels_last in product((False, True)[: 1 + options.compile], (False, True), (False, True)):
        chosen = {"amp": amp, "channels_last": channels_last, "compile": compiled}
        name = ", ".join(key for key, value in chosen.items() if value) or "none"
        functions[name] = forward(options.device, options.batch, **chosen)
    reference = functions["none"]()
    seconds = {
        name: statistics.median(times)
        for name, times in interleaved(functions, options.repeats, options.device).items()
    }
    sys.stdout.write("| options | milliseconds | times as fast | mean change of the noise |\n|---|---|---|---|\n")
    for name, function in functions.items():
        change = float((function() - reference).abs().mean())
        ratio = seconds["none"] / seconds[name]
        sys.stdout.write(f"| {name} | {1e3 * seconds[name]:.0f} | {ratio:.2f} | {change:.1e} |\n")


if __name__ == "__main__":
    main()
