# SPDX-License-Identifier: Apache-2.0
"""Kernel distance against scikit-learn's kernel and torchmetrics, without bias at any size, and on bad images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from medcf.metrics.kernel_distance import KernelDistance, kernel_distance


def by_pairs(a, b):
    """The unbiased estimate, from scikit-learn's kernel, pair by pair."""
    n, m = len(a), len(b)
    own, other, cross = (polynomial_kernel(x, y, degree=3, coef0=1) for x, y in ((a, a), (b, b), (a, b)))
    first = sum(own[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    second = sum(other[i, j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return first + second - 2 * cross.mean()


def test_equals_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 30)), rng.normal(0.4, 1.2, size=(26, 30))
    assert kernel_distance(a, b) == pytest.approx(by_pairs(a, b), rel=1e-10)


def test_equals_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    rng = np.random.default_rng(1)
    a, b = torch.from_numpy(rng.normal(size=(24, 40))), torch.from_numpy(rng.normal(0.5, 1, size=(24, 40)))
    assert kernel_distance(a, b) == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-10)


@pytest.mark.parametrize("count", [4, 40])
def test_two_samples_of_one_distribution_are_at_zero_on_average(count: int) -> None:
    rng = np.random.default_rng(2)
    values = [kernel_distance(rng.normal(size=(count, 50)), rng.normal(size=(count, 50))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_pairs_leave_out_the_product_with_the_own_partner() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(15, 6))
    b = a + 0.3 * rng.normal(size=(15, 6))
    own, other, cross = (polynomial_kernel(x, y, degree=3, coef0=1) for x, y in ((a, a), (b, b), (a, b)))
    terms = own + other - cross - cross.T
    expected = sum(terms[i, j] for i in range(15) for j in range(15) if i != j) / (15 * 14)
    assert kernel_distance(a, b, paired=True) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(a, a, paired=True) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(a, a) < -0.05  # the reason for it


def test_doing_nothing_wins_against_the_inputs_and_loses_against_the_target_class() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(40, 8, generator=generator)
    inputs = inputs - 2
    target = torch.randn(50, 8, generator=generator)
    generated = {
        "unchanged": inputs,
        "good": torch.randn(40, 8, generator=generator),
        "noise": 6 * torch.randn(40, 8, generator=generator),
        "one face": target.mean(0).expand(40, -1),
    }
    found = {}
    for name, features in generated.items():
        to_inputs, to_target = KernelDistance(), KernelDistance(reference=target)
        for part, own in zip(features.split(16), inputs.split(16), strict=True):
            to_inputs(part, own)
            to_target(part, own)
        found[name] = to_inputs.aggregate(), to_target.aggregate()
    assert found["unchanged"][0] == pytest.approx(0, abs=1e-9)
    assert found["unchanged"][1] > 5
    assert abs(found["good"][1]) < 0.2
    assert found["noise"][1] > 50
    assert found["one face"][1] > 0.2


def test_the_mean_of_half_samples_is_the_estimate_and_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    expected = kernel_distance(rng.normal(size=(3000, 5)), rng.normal(0.7, 1, size=(3000, 5)))
    covered = []
    for seed in range(120):
        metric = KernelDistance(reference=torch.from_numpy(rng.normal(0.7, 1, size=(40, 5))))
        metric(torch.from_numpy(rng.normal(size=(30, 5))))
        low, high = metric.interval(seed=seed, num_resamples=100)
        covered.append(low <= expected <= high)
    assert 0.87 < np.mean(covered) <= 1
    whole, halves, _ = metric._half_samples(None, 4000, 0)
    assert halves.mean() == pytest.approx(whole, abs=4 * halves.std() / 4000**0.5)


def test_names_and_counts() -> None:
    metric = KernelDistance("sononet", reference=torch.zeros(6, 2))
    metric(torch.tensor([[0.0, 1.0], [1.0, torch.inf], [2.0, 0.0]]))
    assert metric.name == "KD(sononet)"
    assert KernelDistance("Inception").name == "KID"
    assert (metric.counts().entered, metric.counts().reference) == (2, 6)
    assert np.isfinite(metric.aggregate())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="no partners"):
        kernel_distance(np.zeros((3, 2)), np.zeros((4, 2)), paired=True)
    with pytest.raises(ValueError, match="at least two images"):
        kernel_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(np.full((3, 2), np.inf), np.zeros((3, 2)))
