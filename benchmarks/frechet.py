# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance: medcf's form compared with the textbook formula and with torchmetrics, in one run.

``python -m benchmarks.frechet`` prints a Markdown table. The textbook decomposes the D x D product of the covariances
(``scipy.linalg.sqrtm``), torchmetrics the same one by its eigenvalues; ``medcf.metrics.frechet`` a symmetric matrix of
min(N, M, D) rows. All start from features and compute covariances, torchmetrics in ``update``; its ``compute`` is also
timed alone. Times are of the processor, with one thread each, because others may be using the machine. Features are
random, with a falling spectrum; time does not depend on their values.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from medcf.metrics.frechet import FrechetDistance, frechet_distance

Features = NDArray[np.float64]
Result = TypeVar("Result")


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


def timed(function: Callable[..., Result], *arguments: Features, repeats: int = 1) -> tuple[Result, float]:
    """Return the function's result and its shortest time in seconds of the processor."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - start)
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
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    spread = np.arange(1, options.features + 1) ** -0.5
    a = rng.normal(size=(options.cases, options.features)) * spread
    b = rng.normal(size=(options.reference, options.features)) * spread + 0.05
    fast, fast_seconds = timed(frechet_distance, a, b, repeats=options.repeats)
    slow, slow_seconds = timed(textbook, a, b)
    other, update_seconds = timed(torchmetrics_distance, a, b)
    theirs, compute_seconds = timed(lambda: float(other.compute()))
    their_seconds = update_seconds + compute_seconds
    metric = FrechetDistance(reference=torch.from_numpy(b))
    metric(torch.from_numpy(a))
    start = time.process_time()
    low, high = metric.interval(num_resamples=options.resamples)
    interval_seconds = time.process_time() - start
    write = sys.stdout.write
    write(
        f"N = {options.cases}, M = {options.reference}, D = {options.features}, {torch.get_num_threads()} threads\n\n"
    )
    write("| form | distance | seconds | ratio |\n|---|---|---|---|\n")
    write(f"| scipy.linalg.sqrtm of the D x D product | {slow:.9g} | {slow_seconds:.2f} | 1 |\n")
    ratios = [slow_seconds / seconds for seconds in (their_seconds, compute_seconds, fast_seconds)]
    write(f"| torchmetrics, update and compute | {theirs:.9g} | {their_seconds:.2f} | {ratios[0]:.1f} |\n")
    write(f"| torchmetrics, compute alone | | {compute_seconds:.2f} | {ratios[1]:.1f} |\n")
    write(f"| medcf.metrics.frechet_distance | {fast:.9g} | {fast_seconds:.3f} | {ratios[2]:.0f} |\n")
    write(f"| relative difference | {abs(fast - slow) / slow:.1e} | | |\n")
    write(f"| torchmetrics' time / medcf's | | {their_seconds / fast_seconds:.1f} | |\n")
    write(f"| 95 % interval, {options.resamples} half-samples | {low:.4g} to {high:.4g} | {interval_seconds:.2f} | |\n")


if __name__ == "__main__":
    main()
