# SPDX-License-Identifier: Apache-2.0
"""Errors to the paired truth against scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import gaussian
from skimage.metrics import mean_squared_error, structural_similarity
from torch import Tensor

from medcf.metrics.truth import RelativeTruthError, TruthError, TruthSimilarity, TruthSimilarityGain


def images(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 3, 1, 32, 40, generator=generator) * 2 - 1
    return [noise.cumsum(-1).div(8).clamp(-1, 1)[:, index] for index in range(3)]


def test_the_error_without_smoothing_is_scikit_images() -> None:
    pred, truth, _ = images()
    metric = TruthError(smoothing=0)
    metric(pred, truth)
    expected = [mean_squared_error(t.numpy(), p.numpy()) for p, t in zip(pred, truth, strict=True)]
    np.testing.assert_allclose(metric.per_case(), expected, rtol=1e-5)


def test_similarity_is_scikit_images_within_the_window() -> None:
    pred, truth, _ = images()
    metric = TruthSimilarity(smoothing=0)
    metric(pred, truth)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0, "full": True}
    for value, p, t in zip(metric.per_case(), pred[:, 0].numpy(), truth[:, 0].numpy(), strict=True):
        _, full = structural_similarity(t + 1, p + 1, **options)
        assert float(value) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_smoothing_is_a_gaussian_that_keeps_the_level_at_the_border() -> None:
    pred, truth, _ = images()
    value = TruthError(smoothing=1.5)(pred, truth)
    blurred = [[gaussian(one[0].numpy(), 1.5, mode="constant") for one in each] for each in (pred, truth)]
    weight = gaussian(np.ones((32, 40)), 1.5, mode="constant")
    expected = [np.square((p - t) / weight).mean() for p, t in zip(*blurred, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=2e-3)
    flat = torch.full((1, 1, 32, 40), 0.5)
    assert TruthError(smoothing=3)(flat, 0 * flat).item() == pytest.approx(0.25, rel=1e-5)


def test_smoothing_averages_independent_noise_away_and_keeps_a_broad_change() -> None:
    generator = torch.Generator().manual_seed(1)
    clean = torch.zeros(4, 1, 64, 80)
    clean[..., 20:44, 20:60] = 0.5
    noisy = [clean + 0.1 * torch.randn(clean.shape, generator=generator) for _ in range(2)]
    floor = [TruthError(smoothing)(*noisy).mean() for smoothing in (0, 1.0)]
    # Gaussian weights of standard deviation s keep 1 / (4 pi s^2) of white noise's variance.
    assert floor[0].item() == pytest.approx(0.02, rel=0.05)
    assert floor[1].item() == pytest.approx(0.02 / (4 * np.pi), rel=0.1)
    change = [TruthError(smoothing)(torch.zeros_like(clean), noisy[0]).mean() for smoothing in (0, 1.0)]
    assert change[1] > 0.7 * change[0]


def test_doing_nothing_is_one_and_the_aggregate_is_a_ratio_of_means() -> None:
    pred, truth, image = images(5)
    image[1] = truth[1] + 1e-3
    metric = RelativeTruthError(smoothing=0)
    metric(image, truth, image=image)
    torch.testing.assert_close(metric.per_case(), torch.ones(5, dtype=torch.float64))
    metric = RelativeTruthError(smoothing=0)
    metric(pred, truth, image=image)
    errors = [mean_squared_error(truth.numpy(), each.numpy()) for each in (pred, image)]
    assert metric.aggregate() == pytest.approx(errors[0] / errors[1], rel=1e-5)
    assert metric.per_case()[1] > 1e3
    low, high = metric.interval()
    assert low <= metric.aggregate() <= high


def test_an_input_that_is_the_truth_already_does_not_enter_the_ratios() -> None:
    _, truth, image = images()
    image[0] = truth[0]
    metric = RelativeTruthError()
    metric(image, truth, image=image)
    assert metric.counts().left_out == {"no difference between input and truth": 1}


def test_the_gain_is_the_difference_of_the_similarities() -> None:
    pred, truth, image = images()
    gain = TruthSimilarityGain()(0.5 * pred + 0.5 * truth, truth, image=image)
    expected = TruthSimilarity()(0.5 * pred + 0.5 * truth, truth) - TruthSimilarity()(image, truth)
    torch.testing.assert_close(gain, expected)
    assert bool((gain > 0).all())
    assert TruthSimilarityGain()(image, truth, image=image).abs().max() == 0


def test_volumes_and_missing_arguments() -> None:
    volume = torch.rand(1, 1, 16, 16, 16)
    assert TruthSimilarity()(volume, volume).item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="image="):
        RelativeTruthError()(volume, volume)
    with pytest.raises(ValueError, match="one shape"):
        TruthError()(volume, volume[..., :8])
