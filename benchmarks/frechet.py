# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance: medcf's form compared with the textbook formula and with torchmetrics, in one run.

``python -m benchmarks.frechet`` prints a Markdown table. The textbook decomposes the D x D product of the covariances
(``scipy.linalg.sqrtm``), torchmetrics the same one by its eigenvalues; ``medcf.metrics.frechet`` a symmetric matrix of
min(N, M, D) rows. torchmetrics' time is that of ``compute`` alone: it has summed up the covariances before. Features
are random, with a falling spectrum; time does not depend on their values.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from medcf.metrics.frechet import FrechetDistance, frechet_distance

Features = NDArray[np.float64]


def textbook(a: Features, b: Features) -> float:
    """Fréchet distance as everyone writes it: |m_a - m_b|^2 + tr(S_a + S_b - 2 sqrtm(S_a S_b)).

    Args:
        a: features of one set, (N, D).
        b: features of the other, (M, D).
    """
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(covariances[0] @ covariances[1])).real
    offset = np.square(a.mean(0) - b.mean(0)).sum()
    return float(offset + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root)


class Features2D(torch.nn.Flatten):
    """Passes features (N, D, 1, 1) to torchmetrics as if a network had computed them from images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def torchmetrics_distance(a: Features, b: Features) -> FrechetInceptionDistance:
    """Return torchmetrics' metric after its updates, ready for ``compute``.

    Args:
        a: features of one set, (N, D).
        b: features of the other, (M, D).
    """
    metric = FrechetInceptionDistance(Features2D(a.shape[1])).set_dtype(torch.float64)
    for features, real in ((a, False), (b, True)):
        metric.update(torch.from_numpy(features)[..., None, None], real=real)
    return metric


def timed(function: Callable[..., float], *arguments: Features, repeats: int = 1) -> tuple[float, float]:
    """Return the function's result and its shortest wall time in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frechet", description=__doc__)
    parser.add_argument("--cases", type=int, default=423, help="generated images N")
    parser.add_argument("--reference", type=int, default=423, help="reference images M")
    parser.add_argument("--features", type=int, default=2048, help="features D")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the fast form; the shortest one counts")
    parser.add_argument("--resamples", type=int, default=200, help="half-samples for the interval")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    spread = np.arange(1, options.features + 1) ** -0.5
    a = rng.normal(size=(options.cases, options.features)) * spread
    b = rng.normal(size=(options.reference, options.features)) * spread + 0.05
    fast, fast_seconds = timed(frechet_distance, a, b, repeats=options.repeats)
    slow, slow_seconds = timed(textbook, a, b)
    other = torchmetrics_distance(a, b)
    theirs, their_seconds = timed(lambda: float(other.compute()))
    metric = FrechetDistance(reference=torch.from_numpy(b))
    metric(torch.from_numpy(a))
    start = time.perf_counter()
    low, high = metric.interval(num_resamples=options.resamples)
    interval_seconds = time.perf_counter() - start
    write = sys.stdout.write
    write(
        f"N = {options.cases}, M = {options.reference}, D = {options.features}, {torch.get_num_threads()} threads\n\n"
    )
    write("| form | distance | seconds | ratio |\n|---|---|---|---|\n")
    write(f"| scipy.linalg.sqrtm of the D x D product | {slow:.9g} | {slow_seconds:.2f} | 1 |\n")
    write(f"| torchmetrics, compute | {theirs:.9g} | {their_seconds:.2f} | {slow_seconds / their_seconds:.1f} |\n")
    write(f"| medcf.metrics.frechet_distance | {fast:.9g} | {fast_seconds:.3f} | {slow_seconds / fast_seconds:.0f} |\n")
    write(f"| relative difference | {abs(fast - slow) / slow:.1e} | | |\n")
    write(f"| torchmetrics' time / medcf's | | {their_seconds / fast_seconds:.1f} | |\n")
    write(f"| 95 % interval, {options.resamples} half-samples | {low:.4g} to {high:.4g} | {interval_seconds:.2f} | |\n")


if __name__ == "__main__":
    main()
