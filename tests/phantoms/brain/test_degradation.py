# SPDX-License-Identifier: Apache-2.0
"""Poor scans: each artifact is itself, can be repeated, and leaves truth and background alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medcf.phantoms import BrainMRI, BrainState, DegradeBrain, PairedBrainDataset

GRID = {"size": (40, 48, 40), "spacing": 4.0}


@pytest.fixture(scope="module")
def sample():
    return BrainMRI(7).render(BrainState(0.8), **GRID)


def strengths(**wanted: float) -> dict[str, float]:
    return {"bias": 0.0, "motion": 0.0, "noise": 0.0} | wanted


@pytest.mark.parametrize("name", ["bias", "motion", "noise"])
def test_more_of_an_artifact_is_further_from_the_scan(sample, name):
    amounts = {"bias": (0.1, 0.3), "motion": (1.0, 4.0), "noise": (0.01, 0.05)}[name]
    errors = [
        np.abs(DegradeBrain(**strengths(**{name: amount}))(sample).image - sample.image)[sample.mask].mean()
        for amount in amounts
    ]
    assert 0 < errors[0] < 0.6 * errors[1]


def test_no_strength_leaves_the_scan_alone(sample):
    np.testing.assert_array_equal(DegradeBrain(**strengths())(sample).image, sample.image)


def test_the_bias_field_is_a_smooth_factor(sample):
    found = DegradeBrain(**strengths(bias=0.3))(sample)
    kept = (sample.segmentation == 3) & (found.image < 1)
    field = np.where(kept, found.image / np.where(kept, sample.image, 1), np.nan)
    assert np.nanstd(field) > 0.03
    assert np.nanmedian(np.abs(np.diff(field, axis=0))) < 0.2 * np.nanstd(field)


def test_the_noise_is_as_large_as_asked_for(sample):
    found = DegradeBrain(**strengths(noise=0.03))(sample)
    kept = (sample.segmentation == 2) & (sample.image > 0.2)
    assert (found.image - sample.image)[kept].std() == pytest.approx(0.03, rel=0.1)


def test_motion_leaves_the_brain_where_it_is(sample):
    found = DegradeBrain(**strengths(motion=3.0))(sample)
    shifted = np.roll(sample.image, 1, axis=1)

    def likeness(image):
        return np.corrcoef(image[sample.mask], found.image[sample.mask])[0, 1]

    assert likeness(sample.image) > 0.85
    assert likeness(sample.image) > likeness(shifted) + 0.05


def test_truth_and_background_stay(sample):
    found = DegradeBrain()(sample)
    assert (found.image[~sample.mask] == 0).all()
    assert found.image.dtype == np.float32
    assert found.image.max() <= 1
    np.testing.assert_array_equal(found.segmentation, sample.segmentation)
    assert (found.label, found.severity, found.volumes_mm3) == (sample.label, sample.severity, sample.volumes_mm3)


def test_seed_and_subject_alone_decide(sample):
    torch.manual_seed(0)
    first = DegradeBrain(seed=3)(sample).image
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))  # the training's own random numbers go on untouched
    np.testing.assert_array_equal(first, DegradeBrain(seed=3)(sample).image)
    assert np.abs(first - DegradeBrain(seed=4)(sample).image)[sample.mask].mean() > 0.02
    other = BrainMRI(8).render(BrainState(0.8), **GRID)
    bias = DegradeBrain(**strengths(bias=0.3))
    fields = [(bias(s).image / np.maximum(s.image, 0.01))[sample.mask & other.mask] for s in (sample, other)]
    assert abs(np.corrcoef(*fields)[0, 1]) < 0.9


def test_one_artifact_does_not_change_the_draw_of_another(sample):
    kept = (sample.segmentation == 2) & (sample.image > 0.3)
    alone = DegradeBrain(**strengths(bias=0.3))(sample).image
    both = DegradeBrain(**strengths(bias=0.3, noise=0.001))(sample).image
    np.testing.assert_allclose(alone[kept], both[kept], atol=0.01)


def test_a_pair_shares_the_scanner_but_not_the_noise():
    options = {"size": (20, 24, 20), "spacing": 4.0, "progress": False}
    clean = PairedBrainDataset("demo", 1, **options)[0]
    noisy = PairedBrainDataset("demo", 1, transform=DegradeBrain(**strengths(noise=0.05)), **options)[0]
    biased = PairedBrainDataset("demo", 1, transform=DegradeBrain(**strengths(bias=0.1)), **options)[0]
    middle = torch.ones_like(clean["image"], dtype=torch.bool)
    for item in (clean, biased):
        for key in ("image", "image_true"):
            middle &= (item[key] > -0.5) & (item[key] < 0.5)

    def gain(item, key):
        return ((item[key] + 1) / (clean[key] + 1))[middle]

    torch.testing.assert_close(gain(biased, "image"), gain(biased, "image_true"), atol=1e-3, rtol=0)
    added = [(noisy[key] - clean[key])[middle] for key in ("image", "image_true")]
    assert float(added[0].std()) == pytest.approx(0.1, rel=0.15)  # the range is 2
    assert abs(float(torch.corrcoef(torch.stack(added))[0, 1])) < 0.2
    assert (noisy["image"][noisy["segmentation"] == 0] == -1).all()
    assert torch.equal(noisy["volumes"], clean["volumes"])


def test_nonsense_is_named(sample):
    with pytest.raises(ValueError, match="noise=-1"):
        DegradeBrain(noise=-1)
    with pytest.raises(ValueError, match="movements=0"):
        DegradeBrain(movements=0)
    with pytest.raises(TypeError, match="BrainSample or an item"):
        DegradeBrain()(sample.image)
