# SPDX-License-Identifier: Apache-2.0
"""Cost of one Diff-ICE pass with each gradient estimator: same network, same images, same machine, one run.

``python -m benchmarks.gradients`` prints a Markdown table: seconds, ratio to ``x0``, network evaluations per image and
the peak memory of each pass (of a fresh process on a CPU, of the allocator on a GPU). Weights are random: time does not
depend on their values.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from monai.networks.nets import DiffusionModelUNet

from medcf.guidance import PerceptualFeatures
from medcf.inferers import DiffICEInferer
from medcf.networks import SonoNet
from medcf.schedulers import RespacedDDPMScheduler

ESTIMATORS = ("x0", "xt", "dime")


def measure(estimator: str, options: argparse.Namespace) -> dict[str, float]:
    """Time one pass in this process.

    Args:
        estimator: ``gradient`` of the inferer.
        options: size, batch, steps and device.

    Returns:
        Seconds of the pass, forwards of the U-Net per image, peak memory in MiB.
    """
    torch.manual_seed(0)
    device = torch.device(options.device)
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        num_res_blocks=1,
        channels=(32, 64, 96),
        attention_levels=(False, False, True),
        norm_num_groups=8,
        num_head_channels=32,
        use_flash_attention=True,
    ).to(device)
    classifier = SonoNet(in_channels=1, num_classes=2, features=16).to(device)
    with torch.no_grad():
        images = torch.rand(options.batch, 1, options.height, options.width, device=device) * 2 - 1
        away = 1 - int(classifier.eval()(images).mean(0).argmax())
    inferer = DiffICEInferer(
        RespacedDDPMScheduler(num_train_timesteps=1000),
        classifier,
        target=away,
        perceptual=PerceptualFeatures(classifier, "blocks.0"),
        num_inference_steps=options.steps,
        strength=options.strength,
        num_iterations=1,
        classifier_scales=(1,),
        gradient=estimator,
        progress=False,
    )
    start = time.perf_counter()
    result = inferer.explain(images, network)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "evaluations": result.total_function_evaluations / options.batch, "peak_mib": peak}


def main() -> None:
    """Measure every estimator in a process of its own and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=80)
    parser.add_argument("--steps", type=int, default=40, help="kept steps of the schedule")
    parser.add_argument("--strength", type=float, default=0.3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=ESTIMATORS, help="measure one estimator and print it as JSON")
    options = parser.parse_args()
    if options.only:
        sys.stdout.write(json.dumps(measure(options.only, options)) + "\n")
        return
    rows = {}
    for estimator in ESTIMATORS:
        command = [sys.executable, "-m", "benchmarks.gradients", *sys.argv[1:], "--only", estimator]
        rows[estimator] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    sys.stdout.write("| gradient | seconds | time / x0 | evaluations per image | peak MiB |\n|---|---|---|---|---|\n")
    for estimator, row in rows.items():
        ratio = row["seconds"] / rows["x0"]["seconds"]
        sys.stdout.write(
            f"| {estimator} | {row['seconds']:.2f} | {ratio:.2f} | {row['evaluations']:.0f} | {row['peak_mib']:.0f} |\n"
        )


if __name__ == "__main__":
    main()
