# SPDX-License-Identifier: Apache-2.0
"""Tables of the plane studies: scores, paired differences, rare classes, ensembles, distances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from benchmarks.fetalplanes.study import Arm, Result
from benchmarks.fulora.tables import cell, differences, lines, mean_interval
from medcf.evaluation.classification import class_scores
from medcf.evaluation.ensembles import ENSEMBLES

__all__ = ["CLASSES", "confusions", "difference_table", "ensemble_rows", "rare", "rows_of", "score_table"]

CLASSES = ("Abdomen", "Brain", "Femur", "Thorax", "Maternal cervix", "Other")
SCORES = ("accuracy", "precision", "recall", "f1", "rare")


def rare(recall_by_class: Sequence[float], counts: Sequence[int], share: float = 0.1) -> float:
    """Return the mean recall of the classes with less than a share of the real training images."""
    total = sum(counts)
    members = [one for one, count in enumerate(counts) if 0 < count < share * total]
    return float(np.nanmean([recall_by_class[one] for one in members])) if members else float("nan")


def rows_of(results: Iterable[Result], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Score every training.

    Args:
        results: of the trainings.
        counts: real training images of each class.
    """
    rows = []
    for result in results:
        scores = class_scores(result.test.probabilities, result.test.label)
        by_class = scores.pop("recall_by_class")
        row = {"network": result.network, "arm": result.arm, "seed": result.seed, **scores}
        row["rare"] = rare(by_class, counts)
        rows.append(row | dict(zip((f"recall {name}" for name in CLASSES), by_class, strict=True)))
    return rows


def score_table(rows: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]) -> str:
    """Return the means over seeds, with Student's intervals for accuracy and rare classes."""
    found = []
    for network, arm in dict.fromkeys((row["network"], row["arm"]) for row in rows):
        members = [row for row in rows if (row["network"], row["arm"]) == (network, arm)]
        intervals = {score: mean_interval([row[score] for row in members]) for score in SCORES}
        shown = [cell(intervals[one]) if one in ("accuracy", "rare") else f"{intervals[one][0]:.3f}" for one in SCORES]
        found.append([network, arms[arm].label, *shown])
    head = ["network", "trained on", "accuracy", "precision", "recall", "F1", "recall of rare classes"]
    return lines(head, found)


def difference_table(
    rows: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm], pairs: Iterable[tuple[str, str]]
) -> str:
    """Return what an arm gains over another, paired by network and seed."""
    found = []
    for arm, base in pairs:
        known = {score: differences(rows, score, base) for score in ("accuracy", "rare")}
        for network in dict.fromkeys(row["network"] for row in rows):
            if (network, arm) in known["accuracy"]:
                shown = [cell(known[score][network, arm], sign="+") for score in known]
                found.append([f"{network}: {arms[arm].label} minus {arms[base].label}", *shown])
    return lines(["same network, same seeds, same number of steps", "accuracy", "recall of rare classes"], found)


def ensemble_rows(results: Sequence[Result], arms: Mapping[str, Arm], names: Sequence[str]) -> str:
    """Return the accuracy of votes over all seeds and networks of an arm, beside the mean of their members."""
    found = []
    for arm in names:
        members = [result for result in results if result.arm == arm]
        if len(members) < 2:
            continue
        label = members[0].test.label
        single = [class_scores(one.test.probabilities, label)["accuracy"] for one in members]
        known, tested = [one.val for one in members], [one.test for one in members]
        every = {name: combine(known, tested) for name, combine in ENSEMBLES.items()}
        accuracies = [f"{class_scores(probabilities, label)['accuracy']:.3f}" for probabilities in every.values()]
        found.append([arms[arm].label, len(members), f"{np.mean(single):.3f}", *accuracies])
    return lines(["trained on", "classifiers", "one of them", *ENSEMBLES], found)


def confusions(results: Sequence[Result], arms: Mapping[str, Arm], names: Sequence[str]) -> dict[str, Any]:
    """Return the confusion matrices of arms, summed over seeds, of the first network."""
    network, found = results[0].network, {}
    for arm in names:
        members = [result for result in results if (result.network, result.arm) == (network, arm)]
        if members:
            classes = list(range(len(CLASSES)))
            counts = [confusion_matrix(r.test.label, r.test.probabilities.argmax(1), labels=classes) for r in members]
            found[arms[arm].label] = sum(counts)
    return found
