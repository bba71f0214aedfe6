# SPDX-License-Identifier: Apache-2.0
"""ControlCG's stacked network call compared with separate calls, and K targets in one call with K runs.

``python -m benchmarks.stacked`` runs everything in one process, in turn, with random weights: time does not depend on
what a network has learned. On a CPU it uses the demo's network and volume, and one step per run; on a GPU the
paper's network at 80 x 96 x 80 with 50 steps in 16 bits, and the seconds per volume with the share of the GPU's peak.

``--small`` runs the same program with a tiny network, to check that it works; its figures are meaningless.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import interleaved, median_ratio
from medcf.inferers import AttentionInjectionInferer, explain_seeds
from medcf.networks import ClassTokenUNet, Condition
from medcf.networks.attention_injection import AttentionInjection
from medcf.networks.stack import Stack, plan_stack
from medcf.runtime.memory import peak_bytes
from medcf.runtime.performance import accelerate, autocast
from medcf.schedulers import RespacedDDIMScheduler

CLASSES = 4
NULL = CLASSES
TARGETS = (1, 2, 4)  # K
SEEDS = (4, 8)
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "network": {
            "channels": (8, 8), "attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4,
        },
        "size": (8, 8, 8), "steps": 2,
    },
    "cpu": {
        "network": {
            "channels": (48, 64, 64), "attention_levels": (False, True, True), "norm_num_groups": 16,
            "num_head_channels": 32, "patch_size": 2, "cross_attention_dim": 32,
        },
        "size": (40, 48, 40), "steps": 1,
    },
    "cuda": {
        "network": {
            "channels": (64, 64, 128), "attention_levels": (False, False, True), "norm_num_groups": 32,
            "num_head_channels": 64,
        },
        "size": (80, 96, 80), "steps": 50,
    },
}  # fmt: skip


def build(setting: dict[str, Any], device: torch.device) -> ClassTokenUNet:
    """Return the setting's network with random weights, its attention included."""
    torch.manual_seed(0)
    network = ClassTokenUNet(3, 1, 1, num_classes=CLASSES, num_res_blocks=1, attention_init=0.05, **setting["network"])
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():  # a fresh network predicts 0 whatever it sees
            torch.nn.init.normal_(weight, std=0.05)
    return accelerate(network.eval().to(device), channels_last=True)


def plan(label: int, scale: float, reference: Any) -> Stack:
    """Return the rows of one sample that may read its input."""
    return plan_stack([Condition(label, null=Condition(NULL), scale=scale)], 1, sources=[0], reference=reference)


def forward(
    network: ClassTokenUNet, image: Tensor, rows: Stack, injection: AttentionInjection | None
) -> Callable[[], Any]:
    """Return a call of the network with some rows; the image stands for both x and y."""
    stack = image.expand(len(rows), *image.shape[1:]).contiguous()
    labels = torch.tensor(rows.labels, device=image.device)
    timesteps = torch.full((len(rows),), 500, device=image.device)

    def call() -> Tensor:
        if injection is not None:
            injection.reference = rows.reference
        return network(stack, timesteps=timesteps, class_labels=labels)

    return call


def compare_forwards(network: ClassTokenUNet, image: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Time one stacked network call of a step against the smallest calls with the same result."""
    results = []
    for name, reference in (("classifier-free guidance", None), ("with injection", "same")):
        together = plan(0, 3.0, reference)
        alone = [plan(label, 1.0, reference) for label in (0, NULL)]
        with AttentionInjection(network) as entered:
            injection = entered if reference else None
            stacked = forward(network, image, together, injection)
            parts = [forward(network, image, rows, injection) for rows in alone]

            def separate(parts: Sequence[Callable[[], Any]] = tuple(parts)) -> None:
                for part in parts:
                    part()

            seconds = interleaved({"stacked": stacked, "separate": separate}, repeats, image.device)
        results.append(
            {
                "what": name,
                "rows": [len(together), *(len(rows) for rows in alone)],
                "stacked_s": statistics.median(seconds["stacked"]),
                "separate_s": statistics.median(seconds["separate"]),
                "ratio": median_ratio(seconds["separate"], seconds["stacked"]),
            }
        )
    return results


def method(condition: str, steps: int) -> AttentionInjectionInferer:
    """Return ControlCG with the paper's start and a classifier that costs nothing."""
    scheduler = RespacedDDIMScheduler(1000, prediction_type="v_prediction")
    return AttentionInjectionInferer(
        scheduler,
        lambda image: torch.zeros(len(image), CLASSES, device=image.device),
        0,
        null_class_labels=NULL,
        num_inference_steps=steps,
        reference_condition=condition,  # type: ignore[arg-type]
        progress=False,
    )


def compare_targets(network: ClassTokenUNet, image: Tensor, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Time K targets in one call against K runs, for both conditions of the reference."""
    results = []
    for condition in ("same", "null"):
        inferer = method(condition, steps)
        for count in TARGETS:

            def together(inferer: Any = inferer, count: int = count) -> Any:
                return inferer.explain_targets(image, network, range(count), sample_ids=["case"], run_unchanged=True)

            def runs(inferer: Any = inferer, count: int = count) -> Any:
                return [inferer.explain(image, network, ["case"], k, run_unchanged=True) for k in range(count)]

            pairs = zip(together().values(), runs(), strict=True)
            difference = max(float((one.image - other.image).abs().max()) for one, other in pairs)
            seconds = interleaved({"together": together, "runs": runs}, repeats, image.device)
            forwards = sum(result.total_function_evaluations for result in together().values())
            results.append(
                {
                    "condition": condition,
                    "targets": count,
                    "rows": [forwards // steps, count * (4 if condition == "same" else 3)],
                    "together_s": statistics.median(seconds["together"]),
                    "runs_s": statistics.median(seconds["runs"]),
                    "ratio": median_ratio(seconds["runs"], seconds["together"]),
                    "largest_difference": difference,
                }
            )
    return results


def compare_seeds(network: ClassTokenUNet, image: Tensor, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Time K seeds of one image in one stack against K runs."""
    results = []
    for count in SEEDS:
        run = partial(explain_seeds, method("same", steps), image, network, ["case"], 1, seeds=range(count))
        together, runs = partial(run, stacked=count), partial(run, stacked=1)
        difference = float((together().samples - runs().samples).abs().max())
        seconds = interleaved({"together": together, "runs": runs}, repeats, image.device)
        results.append(
            {
                "seeds": count,
                "together_s": statistics.median(seconds["together"]),
                "runs_s": statistics.median(seconds["runs"]),
                "together_over_runs": median_ratio(seconds["together"], seconds["runs"]),
                "largest_difference": difference,
            }
        )
    return results


def count_operations(network: ClassTokenUNet, image: Tensor) -> int:
    """Return the operations (two a multiply-add) of a stacked forward.

    Counted on meta tensors, which computes nothing: PyTorch counts no attention that runs on a CPU.
    """
    rows = plan(0, 3.0, "same")
    network = copy.deepcopy(network).to("meta")
    with AttentionInjection(network) as injection, FlopCounterMode(display=False) as counter:
        forward(network, image.to("meta"), rows, injection)()
    return counter.get_total_flops()


def activation_bytes(network: ClassTokenUNet, image: Tensor) -> int:
    """Return the peak of memory of a stacked forward."""
    rows = plan(0, 3.0, "same")
    with AttentionInjection(network) as injection:
        return peak_bytes(forward(network, image, rows, injection), image.device)


@torch.no_grad()
def count_paper() -> int:
    """Return the operations of a run at the paper's size."""
    setting = SETTINGS["cuda"]
    network = build(setting, torch.device("cpu"))
    return count_operations(network, torch.zeros(1, 1, *setting["size"])) * setting["steps"]


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all comparisons.

    Args:
        options: ``device``, ``small``, ``repeats``, ``steps``, ``peak``.
    """
    device = torch.device(options.device)
    setting = SETTINGS["small" if options.small else device.type]
    steps = options.steps or setting["steps"]
    network = build(setting, device)
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(1, 1, *setting["size"], generator=generator) * 2 - 1).to(device)
    with autocast(device, enabled=device.type == "cuda"):
        operations, memory = count_operations(network, image), activation_bytes(network, image)
        result: dict[str, Any] = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "size": list(setting["size"]),
            "steps": steps,
            "repeats": options.repeats,
            "operations_of_a_step": operations,
            "activation_bytes_of_a_step": memory,
            "forwards": compare_forwards(network, image, options.repeats),
            "targets": compare_targets(network, image, steps, options.repeats),
            "seeds": compare_seeds(network, image, steps, options.repeats),
        }
    first = next(row for row in result["targets"] if row["condition"] == "same" and row["targets"] == 1)
    result["seconds_a_volume"] = first["runs_s"]
    result["operations_a_second"] = operations * steps / first["runs_s"]
    result["operations_of_the_paper"] = count_paper()
    result["share_of_peak"] = result["operations_a_second"] / (options.peak * 1e12) if options.peak else None
    return result


def report(result: dict[str, Any]) -> str:
    """Lay the result of `measure` out as Markdown."""
    size = " x ".join(str(side) for side in result["size"])
    lines = [
        f"{result['device']}, {result['threads']} thread(s), torch {result['torch']}; {size}, {result['steps']} steps, "
        f"median of {result['repeats']} repeats in turn.",
        "",
        "| one step | rows together / apart | stacked, s | separate, s | separate / stacked |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["forwards"]:
        rows = f"{row['rows'][0]} / {' + '.join(str(n) for n in row['rows'][1:])}"
        lines.append(
            f"| {row['what']} | {rows} | {row['stacked_s']:.4f} | {row['separate_s']:.4f} | **{row['ratio']:.2f}** |"
        )
    lines += [
        "",
        "| reference | K targets | rows together / K runs | together, s | K runs, s | K runs / together | by rows |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["targets"]:
        few, many = row["rows"]
        lines.append(
            f"| {row['condition']} | {row['targets']} | {few} / {many} | {row['together_s']:.3f} | "
            f"{row['runs_s']:.3f} | **{row['ratio']:.2f}** | {many / few:.2f} |"
        )
    lines += ["", "| K seeds | together, s | K runs, s | together / K runs |", "| --- | --- | --- | --- |"]
    for row in result["seeds"]:
        times = f"{row['together_s']:.3f} | {row['runs_s']:.3f}"
        lines.append(f"| {row['seeds']} | {times} | **{row['together_over_runs']:.2f}** |")
    largest = max(row["largest_difference"] for row in (*result["targets"], *result["seeds"]))
    rate = result["operations_a_second"] / 1e12
    share = "" if result["share_of_peak"] is None else f", {result['share_of_peak']:.1%} of peak"
    lines += [
        "",
        f"One volume, one target: {result['seconds_a_volume']:.3f} s, "
        f"{result['operations_of_a_step'] * result['steps'] / 1e12:.4g} TFLOP, {rate:.3g} TFLOP/s{share}; "
        f"activations {result['activation_bytes_of_a_step'] / 1e9:.3g} GB. "
        f"Largest difference between together and apart: {largest:.1e}.",
        "",
        "At the paper's size, 80 x 96 x 80 and 50 steps, a volume takes "
        f"{result['operations_of_the_paper'] / 1e15:.3f} PFLOP (counted, not run).",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device for the computation"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measured calls for each")
    parser.add_argument("--steps", type=int, help="kept steps of a run; by default those of the setting")
    parser.add_argument(
        "--peak", type=float, help="peak of the device in TFLOP/s, for example 989 for an H200 in 16 bits"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU")
    parser.add_argument("--small", action="store_true", help="a tiny network, for trying the program")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = measure(options)
    if options.small:
        sys.stdout.write("SMALL: these figures mean nothing.\n")
    sys.stdout.write(json.dumps(result) + "\n\n" + report(result) + "\n")


if __name__ == "__main__":
    main()
