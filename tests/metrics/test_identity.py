# SPDX-License-Identifier: Apache-2.0
"""Re-identification against scikit-learn, and on counterfactuals that lost their subject."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from medcf.metrics.bootstrap import bootstrap_interval
from medcf.metrics.identity import ReIdentification, pooled_pixels


@pytest.mark.parametrize("k", [1, 3, 5])
def test_rank_k_equals_scikit_learns_top_k_accuracy(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(40, 8, generator=generator)
    queries = gallery + 1.2 * torch.randn(40, 8, generator=generator)
    metric = ReIdentification(k)
    for part in torch.arange(40).split(16):
        metric(queries[part], gallery[part], subject=part)
    expected = top_k_accuracy_score(np.arange(40), cosine_similarity(queries, gallery), k=k)
    assert metric.aggregate() == pytest.approx(expected)
    assert 0.2 < expected < 1


def test_any_image_of_the_same_subject_is_a_hit() -> None:
    gallery = torch.eye(4)
    metric = ReIdentification(k=1)
    metric(gallery[[1, 0, 3, 2]], gallery, subject=torch.tensor([7, 7, 8, 9]))
    assert metric.aggregate() == 0.5
    assert metric.hits.tolist() == [True, True, False, False]


def test_one_average_face_for_all_falls_to_chance() -> None:
    gallery = torch.randn(60, 16, generator=torch.Generator().manual_seed(1))
    metric = ReIdentification(k=3)
    metric(gallery.mean(0).expand(60, -1), gallery, subject=torch.arange(60))
    assert metric.aggregate() == pytest.approx(3 / 60)


def test_pooled_pixels_compare_by_correlation_and_ignore_brightness_and_contrast() -> None:
    images = torch.rand(2, 1, 64, 80, generator=torch.Generator().manual_seed(2))
    features = pooled_pixels(torch.cat([images, 0.3 * images[:1] - 0.5]))
    expected = np.corrcoef(features[0].numpy(), features[1].numpy())[0, 1]
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(features[0], features[1], dim=0).item() == pytest.approx(expected, abs=1e-5)
    assert cosine(features[0], features[2], dim=0).item() == pytest.approx(1, abs=1e-5)


def test_chance_counts_the_images_of_each_subject() -> None:
    generator = torch.Generator().manual_seed(3)
    subject = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4])
    gallery = torch.randn(8, 4, generator=generator)
    rates = []
    for _ in range(400):
        metric = ReIdentification(k=2)
        metric(torch.randn(8, 4, generator=generator), gallery[torch.randperm(8, generator=generator)], subject=subject)
        rates.append(metric.aggregate())
    assert metric.chance == pytest.approx(np.mean(rates), abs=0.02)


def test_unchanged_inputs_are_found_and_constant_or_noise_images_are_not() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.rand(40, 1, 64, 80, generator=generator)
    noise = torch.rand(40, 1, 64, 80, generator=generator)
    found = {}
    for name, images in {"unchanged": inputs, "constant": torch.zeros_like(inputs), "noise": noise}.items():
        metric = ReIdentification(k=3)
        metric(pooled_pixels(images), pooled_pixels(inputs), subject=torch.arange(40))
        found[name] = metric.aggregate(), metric.mean_similarity
        assert metric.chance == pytest.approx(3 / 40)
    assert found["unchanged"] == pytest.approx((1, 1), abs=1e-5)
    assert found["constant"] == pytest.approx((3 / 40, 0))
    assert found["noise"][0] < 0.25
    assert abs(found["noise"][1]) < 0.05


def test_interval_draws_subjects_and_keeps_the_gallery() -> None:
    generator = torch.Generator().manual_seed(5)
    subject = torch.arange(20).repeat_interleave(3)
    gallery = torch.randn(60, 8, generator=generator)
    metric = ReIdentification(k=2)
    metric(gallery + 1.5 * torch.randn(20, 8, generator=generator)[subject], gallery, subject=subject)
    rate = metric.aggregate()
    hits = metric.hits.double().numpy()
    assert metric.per_case().tolist() == hits.tolist()
    assert metric.interval() == bootstrap_interval(np.mean, hits, groups=subject.tolist())
    assert metric.interval()[0] < rate < metric.interval()[1]
    assert metric.interval(groups=range(60)) == bootstrap_interval(np.mean, hits, groups=range(60))


def test_cases_without_finite_features_neither_ask_nor_answer() -> None:
    inputs = torch.eye(4)
    broken = inputs.clone()
    broken[2] = torch.nan
    metric = ReIdentification(k=1)
    metric(broken, inputs, subject=torch.arange(4))
    assert metric.aggregate() == 1
    assert metric.counts().left_out == {"features are not finite": 1}
    assert metric.hits.tolist() == [True, True, False, True]
    assert metric.similarity.isnan().tolist() == [False, False, True, False]
    assert metric.chance == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="saw a case"):
        ReIdentification().aggregate()
