# SPDX-License-Identifier: Apache-2.0
"""Every chain is the one that was meant: its moments follow the recursion for Gaussian data exactly.

``MEDCF_TEST_SCHEDULERS=monai`` runs the same tests on MONAI's own schedulers; see ``conftest.py``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

SAMPLERS = {
    "ddpm-fixed_small": ("ddpm", {"variance_type": "fixed_small"}, {}),
    "ddpm-fixed_large": ("ddpm", {"variance_type": "fixed_large"}, {}),
    "ddim-eta0": ("ddim", {}, {"eta": 0.0}),
    "ddim-eta0.5": ("ddim", {}, {"eta": 0.5}),
    "ddim-eta1": ("ddim", {}, {"eta": 1.0}),
}


def expected_kept(count: int, spacing: str) -> list[int]:
    """The kept lists as their sources define them, ascending."""
    if spacing == "leading":
        return [i * (1000 // count) for i in range(count)]
    if count == 1:
        return [999]
    if spacing == "trailing":
        return sorted(int(t) - 1 for t in np.round(np.arange(1000, 0, -1000 / count)))
    return [round(i * 999 / (count - 1)) for i in range(count)]


def recursion(gaussian, kept: list[int], sampler: str) -> tuple[float, float]:
    """Moments of the chain by pencil and paper: M' = c0 (m + K (M - √A m)) + c1 M, V' = (c0 K + c1)² V + σ²."""
    kind, settings, options = SAMPLERS[sampler]
    m, s = gaussian.mean, gaussian.std
    mean, variance = 0.0, 1.0
    for i in reversed(range(len(kept))):
        a, p = gaussian.alpha_bar[kept[i]], gaussian.alpha_bar[kept[i - 1]] if i > 0 else 1.0
        beta = 1 - a / p
        posterior = beta * (1 - p) / (1 - a)
        if kind == "ddpm":
            c0, c1 = math.sqrt(p) * beta / (1 - a), math.sqrt(a / p) * (1 - p) / (1 - a)
            # Nothing is drawn at the end of the chain, whatever the variance type.
            sigma2 = posterior if settings["variance_type"] == "fixed_small" or i == 0 else beta
        else:
            sigma2 = options["eta"] ** 2 * posterior
            c1 = math.sqrt(max(1 - p - sigma2, 0) / (1 - a))
            c0 = math.sqrt(p) - c1 * math.sqrt(a)
        k = math.sqrt(a) * s**2 / (a * s**2 + 1 - a)
        mean = c0 * (m + k * (mean - math.sqrt(a) * m)) + c1 * mean
        variance = (c0 * k + c1) ** 2 * variance + sigma2
    return mean, variance


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["respaced", "leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 2, 10, 50, 250, 400, 1000])
def test_moments_follow_the_recursion(
    make_scheduler, chain_moments, gaussian, tolerance, count, spacing, prediction_type, sampler
):
    kind, settings, options = SAMPLERS[sampler]
    scheduler = make_scheduler(kind, spacing, prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(count)
    mean, variance = chain_moments(scheduler, gaussian, prediction_type, **options)
    expected_mean, expected_variance = recursion(gaussian, expected_kept(count, spacing), sampler)
    assert mean == pytest.approx(expected_mean, abs=tolerance)
    assert math.sqrt(variance) == pytest.approx(math.sqrt(expected_variance), abs=tolerance)


@pytest.mark.parametrize(
    ("count", "ddim_std", "ddpm_std"),
    [(10, 0.0979, 0.0872), (50, 0.1758, 0.1584), (250, 0.1948, 0.1877), (400, 0.1965, 0.1915), (1000, 0.1985, 0.1963)],
)
def test_known_standard_deviations(make_scheduler, chain_moments, gaussian, count, ddim_std, ddpm_std):
    for kind, std in (("ddim", ddim_std), ("ddpm", ddpm_std)):
        scheduler = make_scheduler(kind)
        scheduler.set_timesteps(count)
        _, variance = chain_moments(scheduler, gaussian)
        assert math.sqrt(variance) == pytest.approx(std, abs=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_moments_follow_the_recursion_under_another_schedule(
    make_scheduler, chain_moments, gaussian, tolerance, sampler
):
    kind, settings, options = SAMPLERS[sampler]
    gaussian = replace(gaussian, alpha_bar=np.cumprod(1 - np.linspace(8.5e-4**0.5, 0.012**0.5, 1000) ** 2))
    scheduler = make_scheduler(kind, schedule="scaled_linear_beta", beta_start=8.5e-4, beta_end=0.012, **settings)
    scheduler.set_timesteps(40)
    mean, variance = chain_moments(scheduler, gaussian, **options)
    expected_mean, expected_variance = recursion(gaussian, expected_kept(40, "respaced"), sampler)
    assert mean == pytest.approx(expected_mean, abs=tolerance)
    assert math.sqrt(variance) == pytest.approx(math.sqrt(expected_variance), abs=tolerance)
