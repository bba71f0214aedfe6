# SPDX-License-Identifier: Apache-2.0
"""Similarity metrics against scikit-image and scipy, and on images that have lost their input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from skimage.transform import downscale_local_mean

from medcf.metrics.similarity import MSE, PSNR, SCALE_WEIGHTS, SSIM, FeatureCosine, MultiScaleSSIM
from medcf.phantoms import PhantomDataset


def pair(*size, batch=3, noise=0.3):
    """Smooth images in [-1, 1], and the same with noise."""
    rng = np.random.default_rng(sum(size))
    y = np.stack([gaussian_filter(rng.normal(size=size), 2) for _ in range(batch)])
    y = np.clip(y / np.abs(y).max(), -1, 1)[:, None]
    y_pred = np.clip(y + noise * rng.normal(size=y.shape), -1, 1)
    return torch.from_numpy(y_pred).float(), torch.from_numpy(y).float()


@pytest.fixture(scope="module")
def heads() -> torch.Tensor:
    return torch.stack([item["image"] for item in PhantomDataset(split="test", count=6, progress=False)])


@pytest.mark.parametrize("size", [(64, 80), (16, 13), (20, 24, 18)])
def test_ssim_is_scikit_images_on_images_shifted_to_start_at_zero(size) -> None:
    y_pred, y = pair(*size)
    metric = SSIM()
    metric(y_pred[:2], y[:2])
    metric(y_pred[2:], y[2:])
    expected = [
        structural_similarity(
            (a[0].numpy() + 1) / 2,
            (b[0].numpy() + 1) / 2,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(y_pred, y, strict=True)
    ]
    assert metric.window == 11
    assert metric.per_case().numpy() == pytest.approx(expected, abs=2e-4)
    assert metric.aggregate() == pytest.approx(np.mean(expected), abs=2e-4)


def multi_scale(a, b, scales):
    """MS-SSIM of two images in [-1, 1] by scipy's filter, window 11."""

    def blurred(image):
        return gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    a, b = a + 1, b + 1
    result = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS[:scales]):
        mean_a, mean_b = blurred(a), blurred(b)
        covariance = blurred(a * b) - mean_a * mean_b
        value = (2 * covariance + 0.06**2) / (blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2 + 0.06**2)
        if scale == scales - 1:
            value = value * (2 * mean_a * mean_b + 0.02**2) / (mean_a**2 + mean_b**2 + 0.02**2)
        result *= max(value.mean(), 0) ** (weight / sum(SCALE_WEIGHTS[:scales]))
        a, b = downscale_local_mean(a, (2, 2)), downscale_local_mean(b, (2, 2))
    return result


@pytest.mark.parametrize(("size", "scales"), [((64, 80), 3), ((24, 40), 2), ((104, 112), 4), ((176, 192), 5)])
def test_multi_scale_ssim_takes_the_scales_that_fit(size, scales) -> None:
    y_pred, y = pair(*size, batch=2)
    metric = MultiScaleSSIM()
    metric(y_pred, y)
    images = zip(y_pred[:, 0].double().numpy(), y[:, 0].double().numpy(), strict=True)
    expected = [multi_scale(a, b, scales) for a, b in images]
    assert metric.scales == scales
    assert f"{scales} scales" in metric.name
    assert metric.per_case().numpy() == pytest.approx(expected, abs=1e-3)


def test_multi_scale_ssim_of_five_scales_is_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    y_pred, y = pair(180, 190, batch=2)
    metric = MultiScaleSSIM()
    metric(y_pred, y)
    expected = functional.multiscale_structural_similarity_index_measure(y_pred + 1, y + 1, data_range=2.0)
    assert metric.aggregate() == pytest.approx(float(expected), abs=5e-3)


@pytest.mark.parametrize("size", [(9, 12), (10, 12, 8)])
def test_small_images_get_a_smaller_window(size) -> None:
    y_pred, y = pair(*size)
    for metric in (SSIM(), MultiScaleSSIM()):
        metric(y, y)
        assert metric.window == min(size) - 1 + min(size) % 2
        assert metric.aggregate() == pytest.approx(1, abs=1e-5)
        metric.reset()
        metric(y_pred, y)
        assert metric.aggregate() < 0.95


def test_different_numbers_of_scales_are_not_averaged() -> None:
    metric = MultiScaleSSIM()
    metric(*pair(64, 80))
    with pytest.raises(ValueError, match="3 scales"):
        metric(*pair(104, 112))
    metric.reset()
    metric(*pair(104, 112))
    assert metric.scales == 4


@pytest.mark.parametrize("size", [(16, 20), (8, 9, 10)])
def test_mse_and_psnr_are_scikit_images(size) -> None:
    y_pred, y = pair(*size)
    mse, psnr = MSE(), PSNR()
    mse(y_pred, y)
    psnr(y_pred, y)
    images = [(b.numpy(), a.numpy()) for a, b in zip(y_pred, y, strict=True)]
    assert mse.per_case().numpy() == pytest.approx([mean_squared_error(*both) for both in images], rel=1e-5)
    expected = [peak_signal_noise_ratio(*both, data_range=2) for both in images]
    assert psnr.per_case().numpy() == pytest.approx(expected, rel=1e-5)
    assert psnr.aggregate() == pytest.approx(np.mean(expected), rel=1e-5)


def test_an_unchanged_image_enters_psnr_with_the_limit() -> None:
    y_pred, y = pair(16, 20, batch=2)
    metric = PSNR(limit=60)
    metric(torch.cat([y_pred[:1], y[1:]]), y)
    noisy, unchanged = metric.per_case().tolist()
    assert unchanged == 60
    assert metric.aggregate() == pytest.approx((noisy + 60) / 2)


def test_bad_counterfactuals_look_less_like_their_input(heads) -> None:
    generator = torch.Generator().manual_seed(0)
    versions = {
        "unchanged": heads,
        "slight": (heads + 0.05 * torch.randn(heads.shape, generator=generator)).clamp(-1, 1),
        "another head": heads.roll(1, 0),
        "average": heads.mean(0, keepdim=True).expand_as(heads),
        "constant": torch.zeros_like(heads),
        "inverted": -heads,
        "noise": torch.rand(heads.shape, generator=generator) * 2 - 1,
    }
    found = {}
    for name, images in versions.items():
        metrics = {"ssim": SSIM(), "ms": MultiScaleSSIM(), "psnr": PSNR(), "mse": MSE()}
        for metric in metrics.values():
            metric(images, heads)
        found[name] = {key: metric.aggregate() for key, metric in metrics.items()}
    assert found["unchanged"] == pytest.approx({"ssim": 1, "ms": 1, "psnr": 100, "mse": 0}, abs=1e-5)
    for bad in ("another head", "average", "constant", "inverted", "noise"):
        for key in ("ssim", "ms", "psnr"):
            assert found[bad][key] < found["slight"][key] < found["unchanged"][key], (bad, key)
        assert found[bad]["mse"] > found["slight"]["mse"] > 0
    assert found["inverted"]["ssim"] < 0.1
    assert found["noise"]["ssim"] < 0.1


def test_feature_cosine_of_images_is_that_of_their_pooled_features() -> None:
    generator = torch.Generator().manual_seed(1)
    y_pred, y = torch.rand(4, 1, 12, 12, generator=generator), torch.rand(4, 1, 12, 12, generator=generator)
    network = torch.nn.Conv2d(1, 5, 3)
    metric = FeatureCosine(network)
    metric(y_pred, y)
    a, b = (network(images).mean((2, 3)).detach().numpy() for images in (y_pred, y))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert metric.per_case().numpy() == pytest.approx(expected, abs=1e-5)


def test_feature_cosine_of_noise_and_of_one_face_falls() -> None:
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(50, 64, generator=torch.Generator().manual_seed(3))
    found = {}
    for name, y_pred in {"own": features, "noise": noise, "one face": features.mean(0).expand(50, -1)}.items():
        metric = FeatureCosine()
        metric(y_pred, features)
        found[name] = metric.aggregate()
    assert found["own"] == pytest.approx(1)
    assert abs(found["noise"]) < 0.1
    assert found["one face"] < 0.3


def test_cases_without_a_direction_or_with_broken_pixels_are_left_out() -> None:
    cosine = FeatureCosine()
    cosine(torch.tensor([[0.0, 0.0], [1.0, torch.nan], [1.0, 0.0]]), torch.ones(3, 2))
    assert cosine.counts().left_out == {"features are zero or not finite": 2}
    assert cosine.aggregate() == pytest.approx(0.5**0.5)
    y_pred, y = pair(16, 20)
    y_pred[1, 0, 3, 3] = torch.nan
    for metric in (SSIM(), MultiScaleSSIM(), MSE(), PSNR()):
        metric(y_pred, y)
        assert metric.counts().entered == 2
        assert np.isfinite(metric.aggregate())


def test_mistakes_are_named() -> None:
    images = torch.zeros(2, 1, 16, 16)
    for metric in (SSIM(), MultiScaleSSIM(), MSE(), PSNR()):
        with pytest.raises(ValueError, match="of one size"):
            metric(images, images[:, :, :8])
        with pytest.raises(ValueError, match="of one size"):
            metric(images)
    with pytest.raises(ValueError, match="value_range"):
        SSIM((1.0, 1.0))
    with pytest.raises(ValueError, match="as y"):
        FeatureCosine()(images)
