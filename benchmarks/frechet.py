# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance with fewer images than features: the Gram / SVD form compared with the textbook formula, in one run.

``python -m benchmarks.frechet`` prints a Markdown table. The textbook decomposes the D x D product of the covariances
(``scipy.linalg.sqrtm``); ``medcf.metrics.frechet`` the N x M scalar products of the features. Features are random, with
a falling spectrum; time does not depend on their values.
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
    write(f"| medcf.metrics.frechet_distance | {fast:.9g} | {fast_seconds:.3f} | {slow_seconds / fast_seconds:.0f} |\n")
    write(f"| relative difference | {abs(fast - slow) / slow:.1e} | | |\n")
    write(f"| 95 % interval, {options.resamples} half-samples | {low:.4g} to {high:.4g} | {interval_seconds:.2f} | |\n")


if __name__ == "__main__":
    main()
