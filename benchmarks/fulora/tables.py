# SPDX-License-Identifier: Apache-2.0
"""Tables of trained classifiers: scores over seeds, and differences between arms of the same network and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

__all__ = ["SCORES", "cell", "difference_table", "differences", "lines", "mean_interval", "score_table"]

Row = Mapping[str, Any]

SCORES = ("accuracy", "precision", "recall", "f", "auc")
#: What a claim may rest on.
PAIRED = ("accuracy", "auc")


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean over seeds and Student's interval; NaN bounds with fewer than two."""
    data = np.asarray(values, float)
    if len(data) < 2:
        return float(data.mean()), float("nan"), float("nan")
    half = student.ppf((1 + confidence) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data))
    return float(data.mean()), float(data.mean() - half), float(data.mean() + half)


def differences(rows: Sequence[Row], score: str, base: str) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return by network and arm the difference of a score from another arm's, paired by seed, with its interval."""
    known = {(row["network"], row["arm"], row["seed"]): row[score] for row in rows}
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for network, arm in dict.fromkeys((row["network"], row["arm"]) for row in rows):
        seeds = [seed for (n, a, seed) in known if (n, a) == (network, arm) and (network, base, seed) in known]
        if arm != base and seeds:
            found[network, arm] = mean_interval([known[network, arm, s] - known[network, base, s] for s in seeds])
    return found


def score_table(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """Return the scores of every network and arm, means over seeds.

    Args:
        rows: ``network``, ``arm``, ``seed``, ``steps`` and the scores of every training.
        labels: how arms read.
    """
    found = []
    for network, arm in dict.fromkeys((row["network"], row["arm"]) for row in rows):
        members = [row for row in rows if (row["network"], row["arm"]) == (network, arm)]
        cells = [cell(mean_interval([row[score] for row in members])) for score in SCORES]
        found.append([network, labels[arm], members[0]["steps"], *cells])
    return lines(["network", "trained on", "steps", *(f"{score} ↑" for score in SCORES)], found)


def difference_table(rows: Sequence[Row], labels: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> str:
    """Return the differences of pairs of arms, with the same network and seeds.

    Args:
        rows: see `score_table`; with ``images``, what was tested, differences are told apart by it.
        labels: how arms read.
        pairs: arm and the one that it is compared with; those that were not trained are left out.
    """
    found = []
    tested = list(dict.fromkeys(row.get("images", "") for row in rows))
    for arm, base in pairs:
        for images in tested:
            members = [row for row in rows if row.get("images", "") == images]
            known = {score: differences(members, score, base) for score in PAIRED}
            for network in dict.fromkeys(row["network"] for row in members):
                if (network, arm) in known["accuracy"]:
                    told = f"{network}: {labels[arm]} minus {labels[base]}"
                    shown = [cell(known[score][network, arm], sign="+") for score in PAIRED]
                    found.append([told, *([images] if any(tested) else []), *shown])
    return lines(["same network, same seeds", *(["tested on"] if any(tested) else []), "accuracy", "AUC"], found)


def cell(interval: Sequence[float], sign: str = "") -> str:
    """Print a mean with its interval."""
    mean, low, high = interval
    if not np.isfinite(low):
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def lines(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Lay out a table in Markdown."""
    every = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in every)
