# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance against the textbook formula, MONAI's, torchmetrics' and closed forms; its interval; bad images."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric
from scipy.linalg import sqrtm

from medcf.metrics.frechet import FrechetDistance, frechet_distance
from medcf.metrics.identity import pooled_pixels
from medcf.phantoms import PairedPhantomDataset

# The textbook formula warns of the singular products that the tests give it.
pytestmark = pytest.mark.filterwarnings("ignore:Matrix is singular")


def textbook(a, b):
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(first @ second)).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root


def draw(count, features, rng, offset=0.0, scale=1.0):
    spread = np.arange(1, features + 1) ** -0.5
    return scale * rng.normal(size=(count, features)) * spread + offset


@pytest.mark.parametrize(
    ("n", "m", "features"),
    [(200, 150, 16), (60, 90, 61), (60, 90, 60), (40, 70, 50), (70, 40, 50), (25, 30, 120), (2, 30, 12), (2, 2, 5)],
)
def test_equals_the_textbook_formula_on_either_side_of_full_rank(n: int, m: int, features: int) -> None:
    rng = np.random.default_rng(n + m)
    mixing = rng.normal(size=(features, features)) / features**0.5
    a, b = draw(n, features, rng), draw(m, features, rng, 0.2, 1.3) @ mixing
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("varying", [True, False])
@pytest.mark.parametrize(("n", "m", "features"), [(700, 620, 600), (600, 900, 2000), (560, 1200, 540)])
def test_large_sets_take_the_faster_decomposition_to_the_same_result(
    n: int, m: int, features: int, varying: bool
) -> None:
    rng = np.random.default_rng(n)
    a, b = draw(n, features, rng), draw(m, features, rng, 0.05, 1.2)
    if not varying:  # covariances that have no Cholesky factor
        a[:, -10:], b[:, -20:] = 0, 1
    if features < 1000:  # a matrix root of more takes long
        assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    centered = [(each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (a, b)]
    root = np.linalg.svd(centered[0] @ centered[1].T, compute_uv=False).sum()
    variance = sum(np.square(each).sum() for each in centered)
    exact = np.square(a.mean(0) - b.mean(0)).sum() + variance - 2 * root
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-7)


def test_a_large_set_has_no_distance_to_itself() -> None:
    a = draw(800, 600, np.random.default_rng(8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * np.trace(np.cov(a, rowvar=False)))


def test_features_that_never_vary_or_repeat_each_other_are_no_problem() -> None:
    rng = np.random.default_rng(0)
    a, b = draw(80, 6, rng), draw(90, 6, rng, 0.5)
    a = np.hstack([a, a[:, :3], np.zeros((80, 2))])
    b = np.hstack([b, b[:, :3], np.ones((90, 2))])
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-6)


def test_equals_monais_where_that_is_stable() -> None:
    rng = np.random.default_rng(1)
    a, b = torch.from_numpy(draw(300, 24, rng)), torch.from_numpy(draw(200, 24, rng, 0.1, 0.7))
    assert frechet_distance(a, b) == pytest.approx(float(FIDMetric()(a, b)), rel=1e-6)


@pytest.mark.parametrize("count", [30, 300])
def test_equals_torchmetrics(count: int) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(2)
    a, b = torch.from_numpy(draw(count, 40, rng)), torch.from_numpy(draw(count, 40, rng, 0.3))
    expected = float(fid._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_closed_form_of_gaussians_with_independent_features() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, [1, 2], size=(200_000, 2)), rng.normal([1, 0], [3, 2.5], size=(200_000, 2))
    assert frechet_distance(a, b) == pytest.approx(1 + (3 - 1) ** 2 + (2.5 - 2) ** 2, rel=0.02)


def test_a_shift_costs_its_square_and_a_set_has_no_distance_to_itself() -> None:
    a = draw(30, 80, np.random.default_rng(4))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a + 0.5) == pytest.approx(80 * 0.25, rel=1e-9)


def test_features_far_from_zero_keep_their_digits() -> None:
    rng = np.random.default_rng(5)
    a, b = draw(20, 50, rng), draw(30, 50, rng, 0.1)
    near = FrechetDistance(reference=torch.from_numpy(b))
    far = FrechetDistance(reference=torch.from_numpy(b) + 1e4)
    near(torch.from_numpy(a))
    far(torch.from_numpy(a) + 1e4)
    assert far.aggregate() == pytest.approx(near.aggregate(), rel=1e-7)
    assert far.interval(num_resamples=20) == pytest.approx(near.interval(num_resamples=20), rel=1e-6)


@pytest.mark.parametrize("features", [10, 100])
def test_subsets_from_scalar_products_equal_those_from_features(features: int) -> None:
    rng = np.random.default_rng(6)
    a, b = torch.from_numpy(draw(40, features, rng)), torch.from_numpy(draw(50, features, rng, 0.2))
    statistic = FrechetDistance(reference=b)._statistic(a, b)
    some, others = rng.permutation(40)[:20], rng.permutation(50)[:25]
    assert statistic(some, others) == pytest.approx(textbook(a[some].numpy(), b[others].numpy()), rel=1e-6)


def test_doing_nothing_wins_against_the_inputs_and_loses_against_the_target_class() -> None:
    rng = np.random.default_rng(7)
    inputs = torch.from_numpy(draw(60, 12, rng)).float()
    target = torch.from_numpy(draw(80, 12, rng, 2.0)).float()
    good = torch.from_numpy(draw(60, 12, rng, 2.0)).float()
    noise = 6 * torch.randn(60, 12, generator=torch.Generator().manual_seed(0)) + 2
    one_face = target.mean(0).expand(60, -1)

    def both(generated):
        to_inputs, to_target = FrechetDistance(), FrechetDistance(reference=target)
        for part, own in zip(generated.split(25), inputs.split(25), strict=True):
            to_inputs(part, own)
            to_target(part, own)
        return to_inputs.aggregate(), to_target.aggregate()

    unchanged, truth = both(inputs), both(good)
    assert unchanged[0] == pytest.approx(0, abs=1e-9)
    assert unchanged[1] > 40
    assert truth[0] > 40
    assert truth[1] < 1
    assert both(noise)[1] > 100
    # An average image has the right mean, but none of the variety: its distance is the variance of the target class.
    assert both(one_face)[1] == pytest.approx(float(target.var(0).sum()), rel=1e-5)


def test_on_phantoms_only_images_of_the_target_class_come_near_it() -> None:
    cases = PairedPhantomDataset(split="test", count=40, progress=False)
    inputs, truth = (torch.stack([case[key] for case in cases]) for key in ("image", "image_true"))
    metric = FrechetDistance("pixels", reference=truth[20:], network=lambda images: pooled_pixels(images, (3, 4)))
    found = {}
    noise = torch.rand(truth[:20].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, images in {"truth": truth[:20], "unchanged": inputs[:20], "noise": noise}.items():
        metric.reset()
        metric(images)
        found[name] = metric.aggregate()
    assert found["truth"] < 0.75 * found["unchanged"] < 0.5 * found["noise"]
    assert metric.counts().reference == 20


def test_the_interval_of_a_distance_that_cannot_be_negative_starts_at_zero() -> None:
    rng = np.random.default_rng(12)
    metric = FrechetDistance(reference=torch.from_numpy(rng.normal(size=(12, 1))))
    metric(torch.from_numpy(rng.normal(size=(12, 1))))
    assert metric.interval(num_resamples=50)[0] == 0


def test_the_interval_covers_the_expected_distance_where_a_bootstrap_does_not() -> None:
    rng = np.random.default_rng(8)
    features, n, m = 80, 24, 32
    expected = np.mean([frechet_distance(draw(n, features, rng), draw(m, features, rng, 0.1)) for _ in range(200)])
    covered, bootstrapped = [], []
    for seed in range(60):
        metric = FrechetDistance(reference=torch.from_numpy(draw(m, features, rng, 0.1)))
        metric(torch.from_numpy(draw(n, features, rng)))
        low, high = metric.interval(num_resamples=60, seed=seed)
        assert low < frechet_distance(*metric.features()) < high
        covered.append(low <= expected <= high)
        a, b = metric.features()
        resampled = [frechet_distance(a[rng.integers(0, n, n)], b[rng.integers(0, m, m)]) for _ in range(40)]
        bootstrapped.append(np.quantile(resampled, 0.025) <= expected <= np.quantile(resampled, 0.975))
    assert np.mean(covered) >= 0.88
    assert np.mean(bootstrapped) < 0.6


def test_whole_subjects_widen_the_interval() -> None:
    rng = np.random.default_rng(9)
    subjects = np.repeat(np.arange(12), 8)
    generated = draw(12, 4, rng, 1.0)[subjects] + 0.01 * rng.normal(size=(96, 4))
    metric = FrechetDistance(reference=torch.from_numpy(draw(400, 4, rng)))
    metric(torch.from_numpy(generated))
    assert np.ptp(metric.interval(groups=subjects.tolist())) > 1.8 * np.ptp(metric.interval())


def test_too_few_images_are_warned_of_with_the_numbers(caplog) -> None:
    rng = np.random.default_rng(10)
    metric = FrechetDistance("sononet", reference=torch.from_numpy(draw(30, 64, rng)))
    metric(torch.from_numpy(draw(20, 64, rng)))
    with caplog.at_level(logging.WARNING):
        value = metric.aggregate()
    for part in ("FD(sononet)", "N = 20", "M = 30", "D = 64", f"{metric.bias():.2g}", f"{value:.4g}"):
        assert part in caplog.text
    assert 0 < metric.bias() < value  # both sets are of one distribution, so the bias is all there is
    caplog.clear()
    enough = FrechetDistance(reference=torch.from_numpy(draw(30, 8, rng)))
    enough(torch.from_numpy(draw(20, 8, rng)))
    enough.aggregate()
    assert not caplog.text


def test_bias_from_half_samples_is_right_for_many_images() -> None:
    rng = np.random.default_rng(11)
    metric = FrechetDistance(reference=torch.from_numpy(draw(300, 6, rng, scale=0.5)))
    metric(torch.from_numpy(draw(300, 6, rng, scale=0.5)))
    # Both sets are of one distribution: the expected distance is the bias itself.
    expected = np.mean(
        [frechet_distance(draw(300, 6, rng, scale=0.5), draw(300, 6, rng, scale=0.5)) for _ in range(100)]
    )
    assert metric.bias(num_resamples=200) == pytest.approx(expected, rel=0.35)


def test_counts_and_name_tell_what_the_figure_is_about() -> None:
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    features[4, 1] = torch.nan
    metric = FrechetDistance("RadImageNet", reference=torch.randn(7, 3))
    metric(features)
    counts = metric.counts()
    assert (counts.entered, counts.reference, counts.left_out) == (9, 7, {"features are not finite": 1})
    assert np.isfinite(metric.aggregate())
    assert metric.name == "FD(RadImageNet)"
    assert FrechetDistance("inception").name == "FID"


@pytest.mark.parametrize("size", [(8, 10), (6, 7, 8)])
def test_a_network_gives_what_features_give(size) -> None:
    generator = torch.Generator().manual_seed(1)
    images, reference = (torch.rand(count, 1, *size, generator=generator) for count in (12, 9))
    network = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d)(1, 3, 3)
    metric = FrechetDistance(reference=reference, network=network)
    metric(images[:5], images[:5])
    metric(images[5:], images[5:])
    with torch.no_grad():
        expected = frechet_distance(*(network(each).flatten(2).mean(2) for each in (images, reference)))
    assert metric.aggregate() == pytest.approx(expected, rel=1e-6)
    metric.reset()
    metric(reference)
    assert metric.aggregate() == pytest.approx(0, abs=1e-9)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full((3, 3), np.nan), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="reference="):
        FrechetDistance()(torch.zeros(3, 2), torch.zeros(4, 2))
    metric = FrechetDistance()
    metric(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="groups has 2 cases, but the metric has 3"):
        metric.interval(groups=[1, 2])
    assert np.isnan(metric.interval()).all()
    with pytest.raises(ValueError, match="saw a case"):
        FrechetDistance().aggregate()
