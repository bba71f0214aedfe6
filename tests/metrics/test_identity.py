# SPDX-License-Identifier: Apache-2.0
"""Re-identification against scikit-learn, and on counterfactuals that lost their subject."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from medcf.metrics.identity import ReIdentification


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
