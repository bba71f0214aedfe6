# SPDX-License-Identifier: Apache-2.0
"""Which map finds what truly changes: counterfactual differences, saliency maps, or nothing at all?

``python -m benchmarks.localization --count 32`` explains paired phantoms of the demo bundle that its classifier calls
non-standard, and compares difference maps with GradCAM, occlusion sensitivity and SmoothGrad (MONAI's) on the two kinds
of true change. Writes a CSV and a Markdown table with bootstrap intervals and the level of chance.
"""

from __future__ import annotations

import argparse
import csv
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks.layers import GaussianFilter
from monai.visualize import GradCAM, OcclusionSensitivity, SmoothGrad
from skimage.filters import sobel
from torch import Tensor, nn

import medcf
from medcf.bundle import find_bundle_root
from medcf.data.phantoms import PairedPhantomDataset
from medcf.data.phantoms.change import TrueChangeDataset
from medcf.guidance import frozen
from medcf.metrics.localization import ChangeAUPRC, ChangeIoU, ChangeLocalization, PointingGame
from medcf.transforms import DifferenceMap, SeededExplanation, explain_with_floor

KINDS = ("appearance", "structure")
METRICS: dict[str, Callable[[], ChangeLocalization]] = {
    "AUPRC": ChangeAUPRC,
    "best IoU": ChangeIoU,
    "pointing game": lambda: PointingGame(tolerance=1),
}
SMOOTHING = 2.0  # pixels; the saliency maps are smooth by construction, so one row of ours is smoothed
STD_FLOOR = 0.05  # image units added to the spread over seeds before it divides


@dataclass(frozen=True)
class Cases:
    """Inputs that the classifier calls non-standard, with what truly changes.

    Attributes:
        image: inputs (N, 1, H, W) in [-1, 1].
        truth: the same subjects' standard planes, same shape.
        change: true change (N, 1, H, W), boolean, by kind.
        organ: the heads (N, 1, H, W), boolean.
        case: names, which seed the noise.
        left_out: inputs that the classifier calls standard already.
    """

    image: Tensor
    truth: Tensor
    change: dict[str, Tensor]
    organ: Tensor
    case: list[str]
    left_out: int


def open_bundle(device: str | None, overrides: dict[str, Any] | None = None) -> ConfigParser:
    """Open the diffice bundle's ``inference.json``."""
    root = find_bundle_root("diffice")
    parser = ConfigParser()
    parser.read_config(str(Path(root) / "configs" / "inference.json"))
    parser.update({"bundle_root": str(root), "progress": False, **(overrides or {})})
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


def explain(inferer: Any, network: nn.Module, cases: Cases, seeds: Sequence[int], batch: int) -> SeededExplanation:
    """Compute counterfactuals and floors of all cases and seeds."""
    parts = []
    for start in range(0, len(cases.case), batch):
        window = slice(start, start + batch)
        parts.append(explain_with_floor(inferer, cases.image[window], network, cases.case[window], seeds=seeds))
        sys.stderr.write(f"{min(start + batch, len(cases.case))} of {len(cases.case)} explained\n")
    return SeededExplanation(
        torch.cat([part.pred for part in parts], dim=1),
        torch.cat([part.reconstruction for part in parts], dim=1),
        [result for part in parts for result in part.results],
    )


def difference_maps(cases: Cases, found: SeededExplanation) -> Iterator[tuple[str, Tensor]]:
    """Yield maps (N, 1, H, W), not negative, from counterfactuals of several seeds."""
    make = DifferenceMap()

    def maps(name: str, seeds: int, floor: bool) -> Tensor:
        return torch.stack(
            [
                make(image, found.pred[:seeds, index], found.reconstruction[:seeds, index] if floor else None)[name]
                for index, image in enumerate(cases.image)
            ]
        )

    count = len(found.pred)
    yield "difference, 1 seed", maps("absolute", 1, False)
    yield "difference minus floor, 1 seed", maps("absolute", 1, True)
    yield "signed minus floor, 1 seed", maps("signed", 1, True).abs()
    if count > 1:
        yield f"difference, {count} seeds", maps("absolute", count, False)
        yield f"signed, {count} seeds", maps("signed", count, False).abs()
        yield f"difference minus floor, {count} seeds", maps("absolute", count, True)
        signed, spread = maps("signed", count, True), maps("signed_std", count, True)
        yield f"signed minus floor, {count} seeds", signed.abs()
        yield f"signed minus floor over its spread, {count} seeds", signed.abs() / (spread + STD_FLOOR)
    blur = GaussianFilter(2, SMOOTHING).to(cases.image.device)
    yield f"signed minus floor, {count} seeds, smoothed", blur(maps("signed", count, True)).abs()


def saliency_maps(cases: Cases, classifier: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield MONAI's saliency maps (N, 1, H, W), not negative, for the class that the classifier says."""
    with torch.no_grad():
        said = classifier(cases.image).argmax(1).tolist()
    images = cases.image.split(1)
    for name, layer in (("GradCAM, last block", "predictor.blocks.4"), ("GradCAM, third block", "predictor.blocks.2")):
        # MONAI's default postprocessing turns the map upside down and stretches it to its own range.
        cam = GradCAM(classifier, layer, postprocessing=lambda values: values)
        # The weights ask for no gradient, so the image has to.
        cams = [cam(x.clone().requires_grad_(), class_idx=c).detach() for x, c in zip(images, said, strict=True)]
        yield name, torch.cat(cams).clamp(min=0)
    # One channel would make MONAI take a sigmoid of the logits, whatever the number of classes.
    occlude = OcclusionSensitivity(
        classifier, mask_size=8, n_batch=32, overlap=0.5, verbose=False, activate=lambda logits: logits.softmax(1)
    )
    with torch.no_grad():
        full = classifier(cases.image).softmax(1)
        # The map is (1, classes, H, W), whatever its documentation says.
        drops = [full[i, c] - occlude(x)[0][:, c : c + 1] for i, (x, c) in enumerate(zip(images, said, strict=True))]
    yield "OcclusionSensitivity", torch.cat([drop.as_subclass(Tensor) for drop in drops]).clamp(min=0)
    torch.manual_seed(0)
    smooth = SmoothGrad(classifier, verbose=False)
    yield "SmoothGrad", torch.cat([smooth(x, index=c).detach() for x, c in zip(images, said, strict=True)]).abs()


def reference_maps(cases: Cases) -> Iterator[tuple[str, Tensor]]:
    """Yield what knows everything and what knows nothing, (N, 1, H, W)."""
    yield "paired true image minus input (perfect counterfactual)", (cases.truth - cases.image).abs()
    edges = np.stack([sobel(image[0].cpu().numpy()) for image in cases.image])[:, None]
    yield "edges of the input (Sobel)", torch.from_numpy(edges).to(cases.image)
    yield "brightness of the input", (cases.image + 1).clamp(min=0)
    yield "random", torch.rand(cases.image.shape, generator=torch.Generator().manual_seed(0)).to(cases.image)
    yield "uniform (chance)", torch.ones_like(cases.image)


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
        The rows, the cases, and the seconds an image that each group of maps took.
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
        (method, lambda: difference_maps(cases, explain(inferer, network, cases, seeds, options.batch_size))),
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
        f"standard plane as truth; {where}. Mean over cases with 95 % bootstrap intervals over subjects.",
        "",
        "- *Appearance*: expected images (speckle averaged away) differ by more than a tenth of the gray range.",
        "- *Structure*: thalami, cavum or posterior fossa are in one of the two planes and not in the other.",
        "- AUPRC is average precision; IoU is at each case's best threshold, chosen with the truth in hand; the "
        "pointing game asks whether the map's maximum lies within one pixel of the change.",
        "- Saliency maps show what in the input made the classifier say its class (it sees the probabilities of its "
        "segmenter, too); they cannot show what is missing. They are smooth by construction, so one difference map is "
        f"smoothed, with a Gaussian of {SMOOTHING:g} pixels.",
        "- The perfect counterfactual has other speckle than the input, which its unsmoothed difference shows everywhere.",
        "- Floor: the same passes with the same noise, without the class's guidance. Signed maps are prediction minus "
        "input; their magnitude is scored.",
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
        f"{options.seed + options.seeds - 1}. Seconds an image, all maps of a group together: {spent}.",
        "",
    ]
    return "\n".join(lines)


def command(options: argparse.Namespace) -> str:
    """Return the command that makes the same tables."""
    words = ["python", "-m", "benchmarks.localization", "--count", str(options.count), "--split", options.split]
    words += ["--seeds", str(options.seeds), "--seed", str(options.seed)]
    words += ["--method", options.method] if options.method else []
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
    parser.add_argument("--split", default="test", help="whose subjects (default test)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the counterfactuals (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="first of them (default 0)")
    parser.add_argument("--method", help="counterfactual method; default is the bundle's")
    parser.add_argument("--inside-head", action="store_true", help="score pixels of the head alone")
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
