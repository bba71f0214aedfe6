# SPDX-License-Identifier: Apache-2.0
"""Is a store of synthetic images any good? Recognized classes, distances to real images, copies of training images."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcf.data.store_files import FILTERED
from medcf.data.synthetic_store import SyntheticStore
from medcf.evaluation.gate import stacked
from medcf.evaluation.judges import Judge, load_judges
from medcf.evaluation.run import finite
from medcf.evaluation.verdict import share_row
from medcf.inference.drawing import GAP, LINE, Canvas, gray
from medcf.metrics.copies import PLANTED, Copies, CopyDetector, plant
from medcf.metrics.exclusions import Summary
from medcf.metrics.frechet import frechet_distance
from medcf.runtime.atomic import write_json
from medcf.runtime.subjects import subjects_of

__all__ = ["Assessment"]

Figures = dict[str, Any]
_TILE, _SHOWN = 128, 12


@dataclass
class Assessment:
    """Compares the images of a store with those that their generator saw, and with others of the same classes.

    Attributes:
        training: dataset of what the generator saw, ``image`` (C, *spatial) in [-1, 1] and ``label``.
        unseen: dataset of real images of other subjects.
        output_dir: folder for ``assessment.json`` and ``neighbors.png``.
        judges: classifiers that had no part in the training, by name.
        features: images to features (B, D), by name, for Fréchet distances.
        copies: images to features of the copy detector; None leaves copies out.
        aim: share of each class that the judges should recognize.
        false_alarms: share of unseen images that may count as copies.
        num_images: at most so many images of each set are used.
        device: device of the networks.
    """

    training: Any
    unseen: Any
    output_dir: str | Path
    judges: Mapping[str, Judge] = field(default_factory=dict)
    features: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    copies: Callable[[Tensor], Tensor] | None = None
    aim: float = 0.9
    false_alarms: float = 0.05
    num_images: int = 2000
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def run(self, store: SyntheticStore | None) -> Figures:
        """Measure, print and write the figures.

        Args:
            store: the images; None, on processes other than the main one, does nothing.

        Returns:
            ``recognized`` (by judge, one entry per class), ``distances`` (by features: to unseen images, all and by
            class, of the store, of the training set, and of what `medcf.synthesis.filter_store` kept and rejected),
            ``copies``, and ``skipped``, sentences on what was not measured.
        """
        if store is None:
            return {}
        if self.copies is not None and len(self.unseen) // 2 * self.false_alarms < 1:
            least = 2 * math.ceil(1 / self.false_alarms)
            raise ValueError(
                f"{len(self.unseen)} unseen images cannot show {self.false_alarms:g} false alarms: half of them "
                f"set the threshold, so use num_unseen={least} or more."
            )
        made, training, unseen = (stacked(one, self.num_images) for one in (store, self.training, self.unseen))
        sets = {"generated": made, "training": training, **self._judged(store)}
        judges, skipped = load_judges(self.judges, made[0][0].to(self.device))
        figures: Figures = {
            "images": {"generated": len(made[0]), "training": len(training[0]), "unseen": len(unseen[0])},
            "recognized": {name: self._recognized(judge, *made, store) for name, judge in judges.items()},
            "distances": {
                name: {which: self._distances(features, images, unseen, store) for which, images in sets.items()}
                for name, features in self.features.items()
            },
            "skipped": skipped,
            "subjects": self._compared(store),
        }
        if self.copies is not None:
            figures["copies"] = self._copies(self.copies, made[0], training[0], unseen[0])
        folder = Path(self.output_dir)
        write_json(folder / "assessment.json", finite(figures))
        sys.stdout.write(_report(figures))
        return figures

    def _judged(self, store: SyntheticStore) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the images that a filter kept and those that it rejected; neither if none was asked."""
        if not (store.folder / FILTERED).is_file():
            return {}
        parts = {name: SyntheticStore(store.folder, kept=name == "kept") for name in ("kept", "rejected")}
        return {name: stacked(part, self.num_images) for name, part in parts.items() if len(part)}

    def _compared(self, store: SyntheticStore) -> dict[str, int | None]:
        """Return how many subjects the generator saw, and how many of them the training images show."""
        shown = set(subjects_of(self.training) or ())
        seen = store.subjects
        return {"seen": None if seen is None else len(seen), "compared": None if seen is None else len(seen & shown)}

    def _recognized(self, judge: Judge, images: Tensor, labels: Tensor, store: SyntheticStore) -> list[Figures]:
        found = torch.cat([judge(part.to(self.device)).cpu() for part in images.split(64)])
        rows = []
        for label in sorted(set(labels[labels >= 0].tolist())):
            members = labels == label
            hits = int((found[members] == label).sum())
            rows.append(share_row(_name(store, label), hits, int(members.sum()), self.aim))
        return rows

    def _distances(
        self, features: Callable[[Tensor], Tensor], ours: Any, others: Any, store: SyntheticStore
    ) -> dict[str, float | None]:
        """Return Fréchet distances, of all images and of each class with at least two on both sides."""
        (a, of_a), (b, of_b) = (
            (torch.cat([features(part.to(self.device)).flatten(1).cpu() for part in images.split(64)]), labels)
            for images, labels in (ours, others)
        )
        known = sorted(set(of_a[of_a >= 0].tolist()) & set(of_b[of_b >= 0].tolist()))
        shared = torch.isin(of_b, torch.tensor(known)) if known else torch.ones(len(b), dtype=torch.bool)
        pairs = {"all": (a, b[shared])} | {_name(store, label): (a[of_a == label], b[of_b == label]) for label in known}
        return {name: frechet_distance(*pair) if min(map(len, pair)) > 1 else None for name, pair in pairs.items()}

    def _copies(self, features: Callable[[Tensor], Tensor], made: Tensor, training: Tensor, unseen: Tensor) -> Figures:
        """Set the threshold on every second unseen image; the others, and planted copies, tell what it is worth."""
        detector = CopyDetector(lambda images: features(images.to(self.device)), training)
        detector.calibrate(unseen[::2], self.false_alarms)
        planted = {kind: _shown(detector.recall(plant(training, kind))) for kind in PLANTED}
        if "image_again" in self.training[0]:
            again = stacked(self.training, self.num_images, "image_again")[0]
            planted["other speckle"] = _shown(detector.recall(again))
        found = detector(made)
        _draw(Path(self.output_dir) / "neighbors.png", made, training, found)
        return {
            "threshold": detector.threshold,
            "false_alarms": _shown(detector(unseen[1::2]).of_samples()),
            "recall": planted,
            "samples_that_are_copies": _shown(found.of_samples()),
            "training_images_copied": _shown(found.of_training()),
        }


def _name(store: SyntheticStore, label: int) -> str:
    return store.class_names[label] if label < len(store.class_names) else str(label)


def _shown(summary: Summary) -> Figures:
    return {"share": summary.mean, "interval": list(summary.interval), "count": summary.count}


def _report(figures: Figures) -> str:
    """Return the figures in a few lines."""
    lines = ["Synthetic images: {generated}; training {training}, unseen {unseen}".format(**figures["images"])]
    for judge, rows in figures["recognized"].items():
        shares = ", ".join(f"{row['class']} {row['share']:.2f}" for row in rows)
        lines.append(f"  recognized by {judge}: {shares}")
    for name, sets in figures["distances"].items():
        told = ", ".join(f"{which} {values['all']:.3g}" for which, values in sets.items() if values["all"] is not None)
        lines.append(f"  Frechet distance to unseen images ({name}): {told}")
    if (copies := figures.get("copies")) is not None:
        recall = ", ".join(f"{kind} {row['share']:.2f}" for kind, row in copies["recall"].items())
        lines.append(f"  copy detector: recall {recall}; false alarms {copies['false_alarms']['share']:.3f}")
        for key in ("samples_that_are_copies", "training_images_copied"):
            row = copies[key]
            low, high = row["interval"]
            lines.append(f"  {key.replace('_', ' ')}: {row['share']:.3f} [{low:.3f}, {high:.3f}] of {row['count']}")
        lines.append(_told(**figures["subjects"]))
    return "\n".join([*lines, *(f"  {sentence}" for sentence in figures["skipped"])]) + "\n"


def _told(seen: int | None, compared: int | None) -> str:
    """Say of whom copies were looked for."""
    if seen is None:
        return "  whom the generator saw is not known: copies of other images were not looked for"
    return (
        f"  compared with {compared} of the {seen} subjects that the generator and its adapters saw; for others change "
        "num_training_images, training_seed and training_options"
    )


def _draw(path: Path, made: Tensor, training: Tensor, found: Copies) -> None:
    """Draw the samples that are most like a training image, each above its neighbor; pictures only."""
    if made.ndim != 4:
        return
    order = found.similarity.argsort(descending=True)[:_SHOWN].tolist()
    width = GAP + len(order) * (_TILE + GAP)
    canvas = Canvas(2 * (_TILE + GAP) + 3 * LINE, width)
    told = "SYNTHETIC images above their most similar training images; red: counts as a copy"
    canvas.text(width / 2, LINE / 2 + 2, told, width=width - 2 * GAP, size=14, bold=True)
    for column, index in enumerate(order):
        left = GAP + column * (_TILE + GAP)
        for row, image in enumerate((made[index], training[int(found.nearest[index])])):
            tile = gray((image[0].numpy() + 1) / 2)
            canvas.paste(tile, LINE + GAP + row * (_TILE + GAP), left, _TILE, _TILE)
        color = "#ff6050" if bool(found.copied[index]) else "white"
        score = f"{float(found.similarity[index]):.2f}"
        canvas.text(left + _TILE / 2, canvas.image.height - LINE, score, width=_TILE, size=13, color=color)
    canvas.save(path)
