# SPDX-License-Identifier: Apache-2.0
"""Which map finds what truly changes: counterfactual differences, saliency maps, or nothing at all?

``python -m benchmarks.localization --count 32`` explains paired phantoms of the demo bundle that its classifier calls
non-standard, and compares difference maps with GradCAM, occlusion sensitivity and SmoothGrad (MONAI's) on the two kinds
of true change. Writes a CSV and a Markdown table with bootstrap intervals and the chance level.
"""

from __future__ import annotations

import argparse
import csv
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

import medcf
from benchmarks.counterfactual.task import Recipe
from benchmarks.localization_maps import SMOOTHING, Cases, difference_maps, reference_maps, saliency_maps
from medcf.inferers import SeededExplanation, explain_with_floor
from medcf.metrics.localization import ChangeAUPRC, ChangeIoU, ChangeLocalization, PointingGame
from medcf.phantoms import PairedPhantomDataset
from medcf.phantoms.head.change import TrueChangeDataset
from medcf.runtime.frozen import frozen
from medcf.runtime.performance import autocast

KINDS = ("appearance", "structure")
METRICS: dict[str, Callable[[], ChangeLocalization]] = {
    "AUPRC": ChangeAUPRC,
    "best IoU": ChangeIoU,
    "pointing game": lambda: PointingGame(tolerance=1),
}

#: What the floors are.
FLOORS = {
    "source": "the same method with the same noise, run toward the class of the input",
    "unguided": "the same passes with the same noise, without the class's guidance",
}


def open_bundle(device: str | None, overrides: dict[str, Any] | None = None) -> ConfigParser:
    """Open the diffice bundle's ``inference.json``."""
    parser = Recipe("diffice", ("inference.json",)).open(overrides)
    if device is not None:
        parser["device"] = torch.device(device)
    return parser


def load_cases(split: str, count: int, classifier: nn.Module, target: int, device: torch.device) -> Cases:
    """Render the pairs and their true change, and keep the inputs that the classifier does not call the target."""
    pairs = PairedPhantomDataset(split=split, count=count)
    changes = TrueChangeDataset(split=split, count=count)
    image = torch.stack([pairs[index]["image"] for index in range(count)]).to(device)
    with torch.no_grad():
        logits = torch.cat([classifier(part) for part in image.split(32)])
    kept = (logits.argmax(1) != target).nonzero()[:, 0].tolist()
    if not kept:
        raise SystemExit(f"The classifier calls all {count} inputs standard planes: nothing is left to explain.")
    return Cases(
        image[kept],
        torch.stack([pairs[index]["image_true"] for index in kept]).to(device),
        {kind: torch.stack([changes[index][kind] for index in kept]).to(device) for kind in KINDS},
        torch.stack([changes[index]["organ"] for index in kept]).to(device),
        [str(pairs[index]["case"]) for index in kept],
        count - len(kept),
    )


def explain(parser: ConfigParser, cases: Cases, seeds: Sequence[int], options: argparse.Namespace) -> SeededExplanation:
    """Compute counterfactuals and floors of all cases and seeds, under autocast as the bundle's own inference."""
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    device, amp = parser.get_parsed_content("device"), parser.get_parsed_content("amp")
    parts = []
    batch = options.batch_size
    for start in range(0, len(cases.case), batch):
        window = slice(start, start + batch)
        with autocast(device, enabled=amp):
            parts.append(
                explain_with_floor(
                    inferer, cases.image[window], network, cases.case[window], seeds=seeds, floor=options.floor
                )
            )
        sys.stderr.write(f"{min(start + batch, len(cases.case))} of {len(cases.case)} explained\n")
    return SeededExplanation(
        torch.cat([part.pred for part in parts], dim=1),
        torch.cat([part.reconstruction for part in parts], dim=1),
        [result for part in parts for result in part.results],
    )


def score(group: str, name: str, maps: Tensor, cases: Cases, inside: bool) -> list[dict[str, Any]]:
    """Compare a map of every case with both kinds of change; one row a kind and metric."""
    rows = []
    for kind in KINDS:
        for title, make in METRICS.items():
            metric = make()
            metric(maps, cases.change[kind], mask=cases.organ if inside else None)
            low, high = metric.interval(groups=cases.case)
            row: dict[str, Any] = {"group": group, "map": name, "change": kind, "metric": title}
            row |= {"value": metric.aggregate(), "low": low, "high": high, "chance": metric.chance()}
            rows.append(row | {"cases": metric.counts().entered})
    return rows


def evaluate(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Cases, dict[str, float]]:
    """Explain, compute all maps and score them.

    Returns:
        The rows, the cases, and the seconds per image for each group of maps.
    """
    parser = open_bundle(options.device, {"method": options.method} if options.method else None)
    network, classifier = parser.get_parsed_content("network"), parser.get_parsed_content("classifier").eval()
    inferer, target = parser.get_parsed_content("inferer"), parser.get_parsed_content("target")
    cases = load_cases(options.split, options.count, classifier, target, parser.get_parsed_content("device"))
    seeds = range(options.seed, options.seed + options.seeds)
    method = str(getattr(inferer, "title", type(inferer).__name__))
    rows: list[dict[str, Any]] = []
    seconds = {}
    groups: tuple[tuple[str, Callable[[], Iterator[tuple[str, Tensor]]]], ...] = (
        (method, lambda: difference_maps(cases, explain(parser, cases, seeds, options))),
        ("saliency", lambda: saliency_maps(cases, classifier)),
        ("reference", lambda: reference_maps(cases)),
    )
    for group, make in groups:
        start = time.perf_counter()
        with frozen(network, classifier):
            maps = list(make())
        seconds[group] = (time.perf_counter() - start) / len(cases.case)
        for name, values in maps:
            rows += score(group, name, values, cases, options.inside_head)
    return rows, cases, seconds


def markdown(rows: list[dict[str, Any]], cases: Cases, seconds: dict[str, float], options: argparse.Namespace) -> str:
    """Write the tables, what they mean, and how they were made."""
    where = "inside the head" if options.inside_head else "over the whole image"
    lines = [
        "# Which map finds what truly changes?",
        "",
        f"{len(cases.case)} non-standard planes of the phantoms' split {options.split!r} ({cases.left_out} more, which "
        "the classifier calls standard already, have no counterfactual and are left out), each with the same subject's "
        f"standard plane as truth; {where}. Mean over cases with 95 % BCa bootstrap intervals over subjects.",
        "",
        "- *Appearance*: expected images (speckle averaged away) differ by more than a tenth of the gray range.",
        "- *Structure*: thalami, cavum or posterior fossa are in one of the two planes and not in the other.",
        "- AUPRC is average precision; IoU is at each case's best threshold, chosen with the truth in hand; the "
        "pointing game asks whether the map's maximum lies within one pixel of the change.",
        "- Saliency maps show what in the input made the classifier say its class (it sees the probabilities of its "
        "segmenter, too); they cannot show what is missing. They are smooth by construction, so one difference map is "
        f"smoothed, with a Gaussian of {SMOOTHING:g} pixels.",
        "- The perfect counterfactual has other speckle than the input, which its difference shows everywhere.",
        f"- Floor: {FLOORS[options.floor]}. Signed maps are prediction minus input; their magnitude is scored.",
        "",
    ]
    for kind in KINDS:
        chosen = [row for row in rows if row["change"] == kind]
        chance = {title: next(row["chance"] for row in chosen if row["metric"] == title) for title in METRICS}
        lines += [f"## Change of {kind}", "", f"| map | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
        for group, name in dict.fromkeys((row["group"], row["map"]) for row in chosen):
            cells = [
                f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                for row in chosen
                if (row["group"], row["map"]) == (group, name)
            ]
            lines.append(f"| {name if group == 'reference' else f'{group}: {name}'} | {' | '.join(cells)} |")
        lines += [f"| *level of chance* | {' | '.join(f'{value:.3f}' for value in chance.values())} |", ""]
    spent = ", ".join(f"{group} {value:.2f}" for group, value in seconds.items())
    versions = f"medcf {medcf.__version__}, torch {torch.__version__}, MONAI {monai.__version__}"
    lines += [
        "## How it was made",
        "",
        f"`{command(options)}` with {versions}, Python {platform.python_version()}; seeds {options.seed} to "
        f"{options.seed + options.seeds - 1}. Seconds per image, all maps of a group together: {spent}.",
        "",
    ]
    return "\n".join(lines)


def command(options: argparse.Namespace) -> str:
    """Return the command that makes the same tables."""
    words = ["python", "-m", "benchmarks.localization", "--count", str(options.count), "--split", options.split]
    words += ["--seeds", str(options.seeds), "--seed", str(options.seed)]
    words += ["--method", options.method] if options.method else []
    words += ["--floor", options.floor] if options.floor != "source" else []
    words += ["--inside-head"] if options.inside_head else []
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.localization", description=__doc__)
    parser.add_argument("--count", type=int, default=32, help="number of pairs (default 32)")
    parser.add_argument("--split", default="test", help="whose subjects to use (default test)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the counterfactuals (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--method", help="counterfactual method; default is the bundle's")
    parser.add_argument(
        "--floor", choices=tuple(FLOORS), default="source", help="reconstruction to subtract (default source)"
    )
    parser.add_argument("--inside-head", action="store_true", help="score only pixels of the head")
    parser.add_argument("--batch-size", type=int, default=8, help="images explained at once (default 8)")
    parser.add_argument("--device", help="default is the bundle's")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/localization"), help="files to write, without suffix"
    )
    options = parser.parse_args(argv)
    if options.count < 1 or options.seeds < 1:
        parser.error("--count and --seeds must be at least 1")
    rows, cases, seconds = evaluate(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
    text = markdown(rows, cases, seconds, options)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
