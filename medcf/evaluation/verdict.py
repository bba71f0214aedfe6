# SPDX-License-Identifier: Apache-2.0
"""The verdict of a gate: figures with their intervals, the limits that they miss, and whether there was enough to tell.

A figure passes by its value. If its 95 % interval also holds values beyond the limit, the verdict is a weak one, and
says what to measure more of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from medcf.metrics.bootstrap import bootstrap_interval

__all__ = ["denoising_row", "report", "share_row", "verdict"]

Figures = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

_LONGEST = 10_000  # images or samples beyond which no number is recommended


def denoising_row(t: int, errors: NDArray[np.float64], bounds: NDArray[np.float64], limit: float) -> Figures:
    """Compare the errors of a network with those of the bound at a timestep.

    Args:
        t: the timestep.
        errors: mean squared error of the network for each held-out image (N,).
        bounds: that of the bound.
        limit: largest permitted ratio of their means.

    Returns:
        The means, their ratio, its 95 % ``interval`` over the images (None with fewer than five), whether it passed.
    """
    error, bound = float(errors.mean()), float(bounds.mean())
    ratio = error / bound if bound else math.inf
    interval = _known(bootstrap_interval(_ratio, errors, bounds)) if bound else None
    return {
        **{"t": t, "error": error, "bound": bound, "ratio": ratio, "interval": interval},
        **{"limit": limit, "passed": ratio <= limit},
    }


def share_row(name: str, hits: int, count: int, aim: float) -> Figures:
    """Return the share of recognized samples of a class, with its exact 95 % interval, and whether it passed."""
    interval = [*_proportion(hits, count)]
    share = hits / count
    return {"class": name, "share": share, "interval": interval, "aim": aim, "passed": share >= aim}


def verdict(figures: Mapping[str, Any], available: int, wanted: int) -> Figures:
    """Judge the figures of a gate.

    Args:
        figures: ``denoising`` and ``samples``, by judge, made of the rows above; ``images`` and ``samples_per_class``.
        available: number of held-out images that there are.
        wanted: number of them that the gate was told to use.

    Returns:
        ``passed``; ``failures`` and ``weak``, sentences on figures beyond their limits and on those that pass but whose
        intervals reach beyond them; and the ``verdict``, as printed.
    """
    steps, shares = figures["denoising"], [row for rows in figures["samples"].values() for row in rows]
    failures, weak = _failures(figures), []
    if unsure := [row for row in steps if _is_weak(row)]:
        names = ", ".join(str(row["t"]) for row in unsure)
        weak.append(f"{figures['images']} images do not exclude a ratio above its limit at t = {names}")
    if any(_is_weak(row) for row in shares):
        weak.append(f"{figures['samples_per_class']} samples per class do not exclude a share below its aim")
    if failures:
        said = "FAIL: " + "; ".join(failures)
    else:
        said = "PASS" + (f" (weak: {_remedy(figures, unsure, shares, available, wanted)})" if weak else "")
    return {"failures": failures, "weak": weak, "passed": not failures, "verdict": said}


def report(figures: Mapping[str, Any], sampling: str) -> str:
    """Lay the figures of a gate out as text.

    Args:
        figures: those of `medcf.evaluation.Gate.run`.
        sampling: how the samples were drawn.
    """
    lines = [
        f"Gate of {figures['weights'] or 'the network'}: {figures['images']} held-out images, Gaussian bound from "
        f"{figures['components']} components of {figures['training_images']} training images",
        f"{'t':>6} {'x0 error':>10} {'bound':>10} {'ratio':>8} {'95 % interval':>16} {'limit':>8}",
    ]
    for row in figures["denoising"]:
        numbers = f"{row['t']:>6} {row['error']:>10.4f} {row['bound']:>10.4f} {row['ratio']:>8.3f}"
        lines.append(f"{numbers} {_shown(row['interval'], 3):>16} {row['limit']:>8.2f}  {_word(row)}")
    if figures["samples"]:
        count = figures["samples_per_class"]
        lines.append(f"Share of {count} samples per class that are recognized, 95 % interval ({sampling})")
    for judge, rows in figures["samples"].items():
        lines += [
            f"  {judge}, {row['class']}: {row['share']:.2f} {_shown(row['interval'], 2)}, at least {row['aim']:.2f}  "
            f"{_word(row)}"
            for row in rows
        ]
    return "\n".join([*lines, *figures["skipped"], figures["verdict"]]) + "\n"


def _ratio(errors: NDArray[np.float64], bounds: NDArray[np.float64]) -> float:
    total = float(bounds.sum())
    return float(errors.sum()) / total if total else math.nan


def _proportion(hits: int, count: int) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson."""
    found = binomtest(hits, count).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def _known(interval: tuple[float, float]) -> list[float] | None:
    return [*interval] if all(map(math.isfinite, interval)) else None


def _is_weak(row: Mapping[str, Any]) -> bool:
    """Tell whether a figure passes although its interval, or the lack of one, leaves the other side possible."""
    if not row["passed"] or row["interval"] is None:
        return bool(row["passed"])
    low, high = row["interval"]
    return bool(high > row["limit"]) if "limit" in row else bool(low < row["aim"])


def _remedy(figures: Mapping[str, Any], unsure: Rows, shares: Rows, available: int, wanted: int) -> str:
    """Say how many images and samples were too few, and the options for as many as should do."""
    counts, options = [], []
    if unsure:
        counts.append(f"{figures['images']} images")
        needed = max(_images_needed(row, figures["images"], wanted) for row in unsure)
        if needed <= _LONGEST:
            options += [f"--num_val {needed}"] if needed > available else []
            options += [f"--gate#num_images {needed}"] if needed > wanted else []
    unsure = [row for row in shares if _is_weak(row)]
    if unsure:
        counts.append(f"{figures['samples_per_class']} samples per class")
        needed = max(_samples_needed(row, figures["samples_per_class"]) for row in unsure)
        options += [f"--gate#num_samples {needed}"] if needed <= _LONGEST else []
    return " and ".join(counts) + (f"; use {' '.join(options)}" if options else "")


def _images_needed(row: Mapping[str, Any], count: int, wanted: int) -> int:
    """Estimate how many images would exclude the limit, as intervals shrink with the root of their number."""
    if row["interval"] is None:
        return max(wanted, count + 1)
    margin, reach = row["limit"] - row["ratio"], row["interval"][1] - row["ratio"]
    return max(count + 1, math.ceil(count * (reach / margin) ** 2)) if margin > 0 else _LONGEST + 1


def _samples_needed(row: Mapping[str, Any], count: int) -> int:
    """Return how many samples would exclude shares below the aim if the same share of them was recognized."""
    while count <= _LONGEST and _proportion(round(row["share"] * count), count)[0] < row["aim"]:
        count = math.ceil(count * 1.1)
    return count


def _shown(interval: Sequence[float] | None, digits: int) -> str:
    return "n too small" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _word(row: Mapping[str, Any]) -> str:
    if not row["passed"]:
        return "FAIL"
    return "weak" if _is_weak(row) else "pass"


def _failures(figures: Mapping[str, Any]) -> list[str]:
    """Say in words which limits were missed."""
    steps = ", ".join(str(row["t"]) for row in figures["denoising"] if not row["passed"])
    failures = [f"the x0 error is above its limit at t = {steps}"] if steps else []
    return failures + [
        f"{judge} recognizes {row['share']:.2f} of the {row['class']} samples, less than {row['aim']:.2f}"
        for judge, rows in figures["samples"].items()
        for row in rows
        if not row["passed"]
    ]
