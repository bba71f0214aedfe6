# SPDX-License-Identifier: Apache-2.0
"""Copies of training images, where it is known which they are."""

from __future__ import annotations

import pytest
import torch
from monai.losses import ContrastiveLoss
from scipy.stats import binomtest

from medcf.metrics.copies import CopyDetector
from medcf.networks.identity import IdentityNetwork
from medcf.training.losses import IdentityLoss
from medcf.training.prepare_batch import PairPrepareBatch


def rows(count, seed):
    return torch.randn(count, 1, 1, 16, generator=torch.Generator().manual_seed(seed))


def flat(images):
    return images.flatten(1)


@pytest.mark.parametrize("false_alarms", [0.05, 0.2])
def test_at_most_the_share_asked_for_of_unseen_images_is_called_a_copy(false_alarms):
    training, unseen = rows(50, 0), rows(200, 1)
    detector = CopyDetector(flat, training)
    detector.calibrate(unseen, false_alarms)
    share = detector(unseen).copied.double().mean()
    assert false_alarms - 1 / 200 <= share <= false_alarms
    assert detector(rows(2000, 2)).copied.double().mean() == pytest.approx(false_alarms, abs=0.04)


def test_planted_copies_are_found_and_assigned_to_their_images():
    training = rows(50, 0)
    detector = CopyDetector(flat, training)
    detector.calibrate(rows(200, 1))
    noisy = 3 * training + 0.3 * rows(50, 3)  # another gain, and noise
    assert detector.recall(noisy).mean == 1
    assert detector(noisy).nearest.tolist() == list(range(50))


def test_shares_of_samples_and_of_training_images_count_what_they_say():
    training = rows(20, 0)
    detector = CopyDetector(flat, training, threshold=0.99)
    found = detector(torch.cat([training[[3, 3, 3, 7]], rows(12, 5)]))
    samples, seen = found.of_samples(), found.of_training()
    assert (samples.count, samples.mean, seen.count, seen.mean) == (16, 4 / 16, 20, 2 / 20)
    for summary, hits in ((samples, 4), (seen, 2)):
        exact = binomtest(hits, summary.count).proportion_ci(method="exact")
        assert summary.interval == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_too_few_images_cannot_show_a_small_share():
    detector = CopyDetector(flat, rows(5, 0))
    with pytest.raises(ValueError, match="give 20 or more"):
        detector.calibrate(rows(19, 1), 0.05)
    with pytest.raises(ValueError, match="no threshold"):
        detector(rows(1, 1))


def test_without_parameters_the_loss_is_the_contrastive_one_alone_and_mirrored_pairs_lower_it():
    torch.manual_seed(0)
    network = IdentityNetwork(0, embedding_size=16, features=4, max_features=16, grid=(2, 2), hidden=32).eval()
    image = torch.randn(6, 1, 32, 32)
    batch = {"image": image, "image_again": image.flip(-1)}
    images, target = PairPrepareBatch("image_again")(batch)
    assert torch.equal(images[6:], image.flip(-1))
    assert target.shape == (12, 0)
    optimizer, loss = torch.optim.Adam(network.parameters(), lr=1e-3), IdentityLoss()
    first = loss(network(images), target)
    embedding = network(images)["embedding"]
    assert torch.equal(first, ContrastiveLoss(temperature=0.1)(embedding[:6], embedding[6:]))
    for _ in range(30):
        optimizer.zero_grad()
        loss(network(images), target).backward()
        optimizer.step()
    assert loss(network(images), target) < first / 2
