# SPDX-License-Identifier: Apache-2.0
"""Which synthetic images are good enough to train on: by structure, by a judge, by people's ratings, and no copies."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from medcf.data.store_files import FILTERED
from medcf.data.synthetic_store import SyntheticStore
from medcf.metrics.copies import CopyDetector
from medcf.runtime.atomic import write_csv
from medcf.runtime.progress import progress_bar

__all__ = [
    "CopyFilter",
    "Filter",
    "JudgeFilter",
    "RatedFilter",
    "StructureFilter",
    "at_device",
    "filter_store",
    "read_ratings",
]

logger = logging.getLogger(__name__)

#: Images (N, C, *spatial) in [-1, 1] and labels (N,) to whether each is kept, bool (N,), and a score (N,).
Filter = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class StructureFilter:
    """Keeps what looks like the real images of its class in the simplest respects; nothing is trained.

    Two numbers describe an image: its median gray value, and the share of its pixels above Otsu's threshold. Both must
    be within the range of the real images of the class. The score is how far outside the worse of them is, in ranges; 0
    is inside.

    Attributes:
        ranges: class to the lowest (2,) and highest (2,) values.
    """

    ranges: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]]

    @classmethod
    def fit(cls, images: Tensor, labels: Tensor, share: float = 0.98) -> StructureFilter:
        """Find the ranges of real images.

        Args:
            images: (N, C, *spatial) in [-1, 1].
            labels: (N,).
            share: share of the real images of a class within the range; 0.98 is from the 1st to the 99th percentile.
        """
        described, tail = _described(images), 50 * (1 - share)
        known = sorted(set(labels.tolist()))
        found = {label: described[(labels == label).numpy()] for label in known}
        return cls({one: tuple(np.percentile(rows, (tail, 100 - tail), axis=0)) for one, rows in found.items()})

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images; one of a class without real images is not kept."""
        scores = []
        for values, label in zip(_described(images), labels.tolist(), strict=True):
            if label not in self.ranges:
                scores.append(float("inf"))
                continue
            low, high = self.ranges[label]
            width = np.maximum(high - low, 1e-6)
            scores.append(float(np.max(np.maximum(np.maximum(low - values, values - high) / width, 0))))
        outside = torch.tensor(scores)
        return outside == 0, outside


@dataclass(frozen=True, eq=False)
class JudgeFilter:
    """Keeps what a classifier takes for its class; nothing is trained for it.

    Attributes:
        judge: images (N, C, *spatial) to logits (N, K); one that had no part in the generator's training.
        threshold: least probability of the image's class.
    """

    judge: Callable[[Tensor], Tensor]
    threshold: float = 0.5

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images."""
        probability = self.judge(images).softmax(1).cpu().gather(1, labels[:, None])[:, 0]
        return probability >= self.threshold, probability


@dataclass(frozen=True, eq=False)
class RatedFilter:
    """Keeps what people would call good: logistic regression on features of images that they rated.

    Source: Tian et al., section 5.1.2, who trained a classifier on 5000 images that were sorted by hand.

    Attributes:
        features: images (N, C, *spatial) to (N, D).
        classifier: the regression, in scikit-learn.
        threshold: least probability of good.
    """

    features: Callable[[Tensor], Tensor]
    classifier: Any
    threshold: float = 0.5

    @classmethod
    def fit(cls, features: Callable[[Tensor], Tensor], images: Tensor, good: Sequence[bool]) -> RatedFilter:
        """Learn from rated images.

        Args:
            features: see above.
            images: (N, C, *spatial).
            good: whether each was accepted, see `read_ratings`.

        Raises:
            ValueError: if all were rated alike.
        """
        if len(set(map(bool, good))) < 2:
            raise ValueError("All images were rated alike: there is nothing to learn; rate good and bad ones.")
        classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        return cls(features, classifier.fit(_plain(features, images), np.asarray(good, dtype=int)))

    @classmethod
    def from_store(
        cls, features: Callable[[Tensor], Tensor], store: SyntheticStore, ratings: str | Path
    ) -> RatedFilter:
        """Learn from the images of a store that people rated.

        Args:
            features: see above.
            store: the images.
            ratings: see `read_ratings`; its cases are those of the store, such as "synthetic-0000012".

        Raises:
            ValueError: if no rated case is in the store, or all were rated alike.
        """
        verdicts = read_ratings(ratings)
        places = {case: place for place, case in enumerate(store.cases)}
        if not (rated := [case for case in verdicts if case in places]):
            raise ValueError(f"{ratings} rates no image of {store.folder}: its cases are like synthetic-0000000.")
        images = torch.stack([store[places[case]]["image"] for case in rated])
        return cls.fit(features, images, [verdicts[case] for case in rated])

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images, whatever their class."""
        probability = torch.from_numpy(self.classifier.predict_proba(_plain(self.features, images))[:, 1])
        return probability >= self.threshold, probability


@dataclass(frozen=True, eq=False)
class CopyFilter:
    """Drops copies of training images. The score is the similarity to the most similar one.

    Attributes:
        detector: calibrated, see `medcf.metrics.CopyDetector`.
    """

    detector: CopyDetector

    @classmethod
    def fit(
        cls, features: Callable[[Tensor], Tensor], training: Tensor, unseen: Tensor, false_alarms: float = 0.05
    ) -> CopyFilter:
        """Set the threshold on images that the generator never saw, see `medcf.metrics.CopyDetector.calibrate`."""
        detector = CopyDetector(features, training)
        detector.calibrate(unseen, false_alarms)
        return cls(detector)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images."""
        found = self.detector(images)
        return ~found.copied, found.similarity


def filter_store(
    store: SyntheticStore | None, filters: Mapping[str, Filter | Literal[False] | None], batch_size: int = 64
) -> dict[str, Any]:
    """Judge every image of a store; ``SyntheticStore(folder, kept=True)`` then reads those that all filters keep.

    Args:
        store: the images; None, on processes other than the main one, does nothing.
        filters: by name; None or False is left out.
        batch_size: images at a time.

    Returns:
        ``images``, ``kept``, and how many each filter rejects; ``filtered.csv`` in the store has one row per image with
        every filter's score.
    """
    if store is None:
        return {}
    chosen = {name: one for name, one in filters.items() if one}
    rows: list[dict[str, Any]] = []
    with progress_bar(len(store), "filtering", unit="image") as bar:
        for first in range(0, len(store), batch_size):
            items = [store[index] for index in range(first, min(first + batch_size, len(store)))]
            images = torch.stack([item["image"] for item in items])
            labels = torch.tensor([-1 if item.get("label") is None else int(item["label"]) for item in items])
            found = {name: judged(images, labels) for name, judged in chosen.items()}
            for place, item in enumerate(items):
                verdicts = {name: bool(keep[place]) for name, (keep, _) in found.items()}
                scores = {f"{name} score": round(float(score[place]), 5) for name, (_, score) in found.items()}
                kept = all(verdicts.values())
                rows.append({"index": item["index"], "case": item["case"], "kept": kept, **verdicts, **scores})
            bar.update(len(items))
    write_csv(store.folder / FILTERED, rows)
    rejected = {name: sum(not row[name] for row in rows) for name in chosen}
    number = sum(row["kept"] for row in rows)
    told = ", ".join(f"{name} {count}" for name, count in rejected.items())
    logger.info("%d of %d images of %s are kept; rejected by %s.", number, len(rows), store.folder, told)
    return {"images": len(rows), "kept": number, "rejected": rejected}


def read_ratings(file: str | Path) -> dict[str, bool]:
    """Read ratings: a TSV with the columns ``case`` and ``rating``, "accept" or "reject"; other ratings are left out.

    Raises:
        ValueError: if a column is missing.
    """
    with Path(file).open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    if not rows or not {"case", "rating"} <= set(rows[0]):
        raise ValueError(f"{file} has no rows with the columns case and rating, separated by tabs.")
    return {row["case"]: row["rating"] == "accept" for row in rows if row["rating"] in ("accept", "reject")}


def _described(images: Tensor) -> NDArray[np.float64]:
    """Return the median and the bright share (N, 2) of images."""
    values = images.flatten(1).double().numpy()
    bright = [float((row > threshold_otsu(row)).mean()) if np.ptp(row) > 0 else 0.0 for row in values]
    return np.stack([np.median(values, axis=1), bright], axis=1)


def at_device(device: torch.device | str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that takes images to a network's device and its answer back; for configs.

    Args:
        device: of the network.
        function: the network, or what it makes of images.
    """
    return lambda images: function(images.to(device)).cpu()


@torch.no_grad()
def _plain(features: Callable[[Tensor], Tensor], images: Tensor) -> NDArray[np.float64]:
    return features(images).flatten(1).double().cpu().numpy()
