# SPDX-License-Identifier: Apache-2.0
"""Novelty: familiar images pass, anything else is flagged, at the rate that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.metrics.novelty import NoveltyDetector, fit_novelty
from medcf.networks.segmentation_guided import SegmentationGuidedClassifier
from medcf.networks.sononet import SonoNet
from medcf.runtime.weights import read_weights
from medcf.training.calibration import calibrate_novelty


class Segmenter(torch.nn.Module):
    """Bright pixels are structure 1."""

    def forward(self, image):
        return torch.cat([-5 * image, 5 * image], dim=1)


def pictures(count, seed, size=(32, 40)):
    """Bright ellipses of varying place and size on a dark ground, with some speckle."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    images = []
    for _ in range(count):
        y, x, height, width = rng.normal(0, 0.08, 2).tolist() + rng.uniform(0.4, 0.7, 2).tolist()
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
        image = np.where(inside, rng.uniform(0.1, 0.4), -0.8) + rng.normal(0, 0.1, size)
        images.append(np.clip(image, -1, 1))
    return torch.tensor(np.stack(images)[:, None], dtype=torch.float32)


def make_detector(state=None, seed=0, features=4):
    torch.manual_seed(seed)
    classifier = SegmentationGuidedClassifier(Segmenter(), SonoNet(3, features=features, num_blocks=3)).eval()
    return NoveltyDetector(classifier, Segmenter(), state)


@pytest.fixture(scope="module")
def detector():
    detector = make_detector()
    detector.state = fit_novelty(detector, [pictures(400, 0)], [pictures(400, 1)], quantile=0.99)
    return detector


def test_unseen_images_of_the_same_kind_pass(detector):
    flags = detector(pictures(500, 2))["out_of_distribution"]
    assert flags.float().mean() < 0.03


@pytest.mark.parametrize(
    "strange",
    [
        torch.full((1, 1, 32, 40), -1.0),
        torch.full((1, 1, 32, 40), 0.2),
        torch.rand(1, 1, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        -pictures(1, 3),
        torch.flip(pictures(1, 3).roll(14, dims=3), dims=(2,)),
        torch.linspace(-1, 1, 40).expand(1, 1, 32, 40).contiguous(),
        torch.sign(torch.sin(torch.arange(40.0))).expand(1, 1, 32, 40).contiguous(),
    ],
    ids=["black", "gray", "noise", "negative", "moved", "ramp", "stripes"],
)
def test_anything_else_is_flagged(detector, strange):
    scores = detector(strange)
    assert bool(scores["out_of_distribution"])
    assert float(scores["novelty"]) > 1


def test_score_of_an_image_does_not_depend_on_its_batch(detector):
    images = pictures(4, 4)
    together = detector(images)["novelty"]
    alone = torch.cat([detector(image[None])["novelty"] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_share_of_flags_follows_the_quantile():
    detector = make_detector()
    detector.state = fit_novelty(detector, [pictures(300, 0)], [pictures(300, 1)], quantile=0.9)
    share = float(detector(pictures(300, 1))["out_of_distribution"].float().mean())
    assert share == pytest.approx(0.1, abs=0.01)


def test_distance_is_mahalanobis(detector):
    """Against scipy, with the covariance that the stored whitening stands for."""
    from scipy.spatial.distance import mahalanobis

    image = pictures(1, 5)
    vector = detector.views(image)["anatomy"][0].double().numpy()
    mean = detector.state["anatomy.mean"].double().numpy()
    whitening = detector.state["anatomy.whitening"].double().numpy()
    expected = mahalanobis(vector, mean, whitening @ whitening.T) ** 2
    ratio = expected / float(detector.state["anatomy.quantile"]) / float(detector.state["threshold"])
    assert float(detector(image)["novelty_anatomy"]) == pytest.approx(ratio, rel=1e-3)


def test_statistics_survive_the_file(tmp_path):
    detector = make_detector()
    batches = [{"image": pictures(200, seed)} for seed in (0, 1)]
    share = calibrate_novelty(detector, batches[:1], batches[1:], tmp_path / "models" / "novelty.pt", quantile=0.95)
    assert share == pytest.approx(0.05, abs=0.01)
    loaded = make_detector(read_weights(tmp_path / "models" / "novelty.pt"))
    image = pictures(3, 6)
    torch.testing.assert_close(loaded(image)["novelty"], detector(image)["novelty"])


def test_statistics_of_other_networks_are_refused(detector):
    with pytest.raises(ValueError, match=r"threshold.*calibrate.json"):
        make_detector({k: v for k, v in detector.state.items() if k != "threshold"})
    with pytest.raises(ValueError, match=r"other weights.*calibrate.json"):
        make_detector(detector.state, seed=1)
    with pytest.raises(ValueError, match=r"other weights.*calibrate.json"):
        make_detector(detector.state, features=8)
    make_detector(detector.state)


def test_a_score_that_is_not_a_number_is_flagged(detector):
    assert bool(detector(torch.full((1, 1, 32, 40), float("nan")))["out_of_distribution"])


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="too few"):
        fit_novelty(make_detector(), [pictures(5, 0)], [pictures(1, 1)])
