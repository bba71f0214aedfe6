# SPDX-License-Identifier: Apache-2.0
"""How many samples are copies of training images? ``python -m benchmarks.fulora.copies``.

Trainings of several lengths on several numbers of images: of adapters, and of all weights from the base's on. Beside
them the base itself, which saw none of these images. A detector is worth what it finds of planted copies, and what it
calls a copy among real images that no generator ever saw. What is done is kept (``--work``).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed

from benchmarks.command_line import bundle_command, setting
from benchmarks.counterfactual.environment import describe_command, describe_machine
from benchmarks.counterfactual.tables import insert_or_write
from benchmarks.fulora import images
from benchmarks.fulora.images import CLASSES, SEEDS, model_folder, models_folder, phantom_adapter, phantom_options
from benchmarks.fulora.tables import cell, lines
from medcf.runtime.atomic import write_csv, write_json
from medcf.runtime.fingerprint import sha256

__all__ = ["KINDS", "Trained", "main", "tables", "trainings"]

logger = logging.getLogger("benchmarks.fulora.copies")

#: What is trained, and how it reads.
KINDS = {"base": "the base, not trained on these images", "adapter": "adapter", "full": "all weights"}


@dataclass(frozen=True)
class Trained:
    """A training: of what, on how many images, how often each is seen."""

    kind: str
    images: int
    views: int


def trainings(kinds: Sequence[str], sizes: Sequence[int], views: Sequence[int]) -> list[Trained]:
    """Return every training, and first the base of each number of images."""
    found = [Trained("base", size, 0) for size in sizes if "base" in kinds]
    return found + [Trained(kind, size, n) for kind in kinds if kind != "base" for size in sizes for n in views]


def main(arguments: list[str] | None = None) -> None:
    """Run the study and write its tables."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    jobs = [partial(assess, training, options) for training in trainings(options.kinds, options.sizes, options.views)]
    rows = Parallel(n_jobs=options.processes, prefer="threads")(delayed(job)() for job in jobs)
    write_csv(options.out / "fulora_copies.csv", [flat(row) for row in rows])
    run = describe_machine(options.device, options.threads * options.processes)
    run += f" Command: `{describe_command('benchmarks.fulora.copies', arguments)}`; figures: `fulora_copies.csv`."
    told = f"Site {options.site}; adapters of rank {options.rank}; {options.count} samples of each of {len(CLASSES)} "
    told += f"classes; {options.num_unseen} real images that were never seen, every second one for the threshold. "
    text = f"{tables(rows)}\n\n{told}Intervals: 95 %, exact. {run}"
    insert_or_write(options.out / "fulora.md", "copies", text, "fulora_copies", "Copies of training images")
    sys.stdout.write(text + "\n")


def assess(training: Trained, options: argparse.Namespace) -> dict[str, Any]:
    """Train, generate and look for copies; return the training and the figures, from the disk if it was done."""
    ids = dict(options.set)
    base = model_folder(options.work, ids)
    name = f"{training.kind}_{options.site}_{options.rank}_{training.images}_{training.views}"
    folder = base / "copies" / f"{name}_{options.count}_{options.num_unseen}"
    detector = models_folder(ids) / "copies.pt"
    asked = {"detector": sha256(detector) if detector.is_file() else None}
    file = folder / "copies.json"
    if file.is_file() and (stored := json.loads(file.read_text(encoding="utf-8")))["question"] == asked:
        return {**asdict(training), **stored["figures"]}
    seen = phantom_options(options.site)
    given: dict[str, Any] = {"num_training_images": training.images, "training_seed": SEEDS[options.site]}
    given |= {"phantom_options": seen, "training_options": seen, "num_unseen": options.num_unseen}
    given |= {"count": options.count, "classes": CLASSES, "output_dir": folder, "cache_dir": options.work / "cache"}
    if training.kind == "adapter":
        trained = phantom_adapter(options.site, options.rank, training.images, training.views, base, ids)
        given["adapter"] = trained
    elif training.kind == "full":
        given["weights#model"] = all_weights(training, options.site, base, options.work / "cache", ids)
    logger.info("looking for copies: %s", name)
    images.run(bundle_command("fulora", ["inference.json", "evaluate.json"], {**given, **ids}))
    figures = json.loads((folder / "assessment.json").read_text(encoding="utf-8"))["copies"]
    write_json(file, {"question": asked, "figures": figures})
    return {**asdict(training), **figures}


def all_weights(training: Trained, site: str, work: Path, cache: Path, ids: Mapping[str, Any]) -> Path:
    """Train all weights from the base's on, as an adapter is trained: batches of 2, the same number of them."""
    folder = work / f"full_{site}_{training.images}_{training.views}"
    file, steps = folder / "model.pt", max(1, training.images // 2)
    given = {"pretrained": models_folder(ids) / "model.pt", "export_path": file, "gate": False}
    given |= {"phantom_options": phantom_options(site), "phantom_seed": SEEDS[site], "cache_dir": cache}
    given |= {"num_train": training.images, "batch_size": 2, "learning_rate": 1e-4, "epoch_length": steps}
    given |= {"iterations": steps * training.views, "val_interval": training.views, "trained_network": "@network"}
    return images.once(file, folder, ["train.json"], {**given, **ids})


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the CSV: shares with their intervals and counts."""
    shares = {key: row[key] for key in ("samples_that_are_copies", "training_images_copied", "false_alarms")}
    shares |= {f"recall {kind}": share for kind, share in row["recall"].items()}
    found = {key: row[key] for key in ("kind", "images", "views", "threshold")}
    for name, share in shares.items():
        low, high = share["interval"]
        found |= {name: share["share"], f"{name} low": low, f"{name} high": high, f"{name} n": share["count"]}
    return found


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the shares of copies, and what the detector is worth for each number of training images."""
    head = ["trained", "images", "views of each", "samples that are copies ↓", "training images copied ↓"]
    found = []
    for row in rows:
        shares = [_share(row[key]) for key in ("samples_that_are_copies", "training_images_copied")]
        found.append([KINDS[row["kind"]], row["images"], row["views"], *shares])
    worth = {row["images"]: row for row in rows}
    kinds = list(dict.fromkeys(kind for row in worth.values() for kind in row["recall"]))
    cells = []
    for count, row in worth.items():
        shares = [*(row["recall"][kind] for kind in kinds), row["false_alarms"]]
        cells.append([count, f"{row['threshold']:.3f}", *map(_share, shares)])
    planted = [f"found of planted: {kind} ↑" for kind in kinds]
    told = lines(["training images", "threshold", *planted, "false alarms on images never seen ↓"], cells)
    return f"{lines(head, found)}\n\n{told}"


def _share(share: Mapping[str, Any]) -> str:
    return cell((share["share"], *share["interval"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fulora.copies", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[20, 100], help="numbers of training images")
    parser.add_argument("--views", nargs="+", type=int, default=[10, 30, 100], help="100 in the paper")
    parser.add_argument("--site", choices=SEEDS, default="B", help="the base was trained on site A")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--count", type=int, default=40, help="samples of each class")
    parser.add_argument("--num-unseen", type=int, default=600, help="real images that were never seen")
    parser.add_argument("--set", type=setting, action="append", default=[], help="id of fulora's configs: ID=JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks/fulora"))
    return parser


if __name__ == "__main__":
    main()
