# SPDX-License-Identifier: Apache-2.0
"""Speckle, gain and shadows as physics has them: decibels on a log-compressed image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcf.transforms import (
    RandAcousticShadow,
    RandAcousticShadowd,
    RandGain,
    RandGaind,
    RandSpeckle,
    RandSpeckled,
)

#: Standard deviation in decibels of a Rayleigh distributed amplitude: 10 / ln 10 times pi / sqrt 6.
RAYLEIGH = 10 / math.log(10) * math.pi / math.sqrt(6)


def test_fully_developed_speckle_has_rayleigh_s_decibels():
    speckle = RandSpeckle(1.0, strength=(1, 1), cell=0).set_random_state(0)
    field = speckle.field((400, 400))
    assert float(field.std()) == pytest.approx(RAYLEIGH, rel=0.01)
    amplitude = 10 ** (field / 20)
    assert float(amplitude.mean() / amplitude.std()) == pytest.approx(1.91, abs=0.02)  # Rayleigh's mean over its spread
    half = RandSpeckle(1.0, strength=(0.5, 0.5), cell=0).set_random_state(0).field((400, 400))
    torch.testing.assert_close(half, field / 2)


@pytest.mark.parametrize("cell", [(3.0, 6.0), (6.0, 3.0)])
def test_a_resolution_cell_sets_how_far_speckle_is_correlated(cell):
    power = 10 ** (RandSpeckle(1.0, (1, 1), cell).set_random_state(0).field((512, 512))[0] / 10)
    power = power - power.mean()
    for axis, width in enumerate(cell):
        lagged = [(power * power.roll(lag, axis)).mean() / power.square().mean() for lag in range(12)]
        # the correlation of the power is a Gaussian as wide as the cell, by the autocorrelation of a filter's noise
        expected = [math.exp(-(lag**2) * 4 * math.log(2) / width**2) for lag in range(12)]
        np.testing.assert_allclose(lagged, expected, atol=0.08)


def test_speckle_is_added_in_decibels_and_black_stays_black():
    image = torch.full((1, 64, 64), 128.0)
    image[:, :10] = 0
    changed = RandSpeckle(1.0, (0.3, 0.3), 2.0, dynamic_range=60).set_random_state(0)(image)
    field = RandSpeckle(1.0, (0.3, 0.3), 2.0).set_random_state(0)
    field.randomize((64, 64))
    torch.testing.assert_close(changed[:, 10:], (128 + field._field * 255 / 60).clamp(0, 255)[:, 10:])
    assert (changed[:, :10] == 0).all()


def test_gain_varies_with_depth_alone():
    image = torch.full((1, 40, 60), 0.5)
    for axis in (-1, 0):
        changed = RandGain(1.0, gain=(3, 3), compensation=2, axis=axis).set_random_state(0)(image)[0]
        across = changed.std(dim=1 if axis == 0 else 0)
        along = changed.std(dim=0 if axis == 0 else 1)
        assert float(across.max()) < 1e-6
        assert float(along.min()) > 0.005
    even = RandGain(1.0, gain=(6, 6), compensation=0).set_random_state(0)(image)
    torch.testing.assert_close(even, torch.full_like(image, 0.6))  # 6 of 60 dB


def test_a_shadow_falls_behind_its_obstacle_and_deepens():
    image = torch.zeros(1, 200, 100) + 0.9
    shadow = RandAcousticShadow(1.0, (1, 1), (0.2, 0.2), (0.4, 0.4), (30, 30)).set_random_state(2)
    darker = (image - shadow(image))[0] * 60  # decibels
    assert float(darker[:, :39].abs().max()) == 0
    beam = darker[int(darker[:, -1].argmax())]
    assert float(beam[41]) == pytest.approx(15, abs=1)
    assert float(beam[-1]) == pytest.approx(30, abs=1)
    assert (beam[40:].diff() >= 0).all()
    assert int((darker[:, -1] > 15).sum()) == pytest.approx(40, abs=2)  # a fifth of the width
    turned = RandAcousticShadow(1.0, (1, 1), (0.2, 0.2), (0.4, 0.4), (30, 30), axis=0).set_random_state(2)
    torch.testing.assert_close(turned(image.transpose(1, 2)), shadow(image, randomize=False).transpose(1, 2))


@pytest.mark.parametrize("array", [RandSpeckle, RandGain, RandAcousticShadow])
def test_the_image_s_own_range_type_and_metadata_are_kept(array):
    unit = torch.rand(1, 32, 40, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    expected = array(1.0).set_random_state(4)(unit)
    assert not torch.equal(expected, unit)
    wide = array(1.0).set_random_state(4)(unit * 255)
    torch.testing.assert_close(wide / 255, expected, atol=1e-5, rtol=0)
    signed = array(1.0).set_random_state(4)(unit * 2 - 1)
    torch.testing.assert_close((signed + 1) / 2, expected, atol=1e-5, rtol=0)
    tracked = array(1.0).set_random_state(4)(MetaTensor(unit, affine=torch.eye(4) * 2))
    assert isinstance(tracked, MetaTensor)
    assert float(tracked.affine[0, 0]) == 2
    assert isinstance(array(1.0)(unit.numpy()), np.ndarray)
    assert torch.equal(array(0.0)(unit), unit)
    volume = array(1.0).set_random_state(0)(torch.rand(1, 12, 14, 16))
    assert volume.shape == (1, 12, 14, 16)


@pytest.mark.parametrize("dictionary", [RandSpeckled, RandGaind, RandAcousticShadowd])
def test_both_images_of_a_sample_get_the_same_field(dictionary):
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    both = dictionary(["a", "b"], 1.0).set_random_state(1)({"a": image, "b": image, "case": "x"})
    assert torch.equal(both["a"], both["b"])
    assert both["case"] == "x"
    assert not torch.equal(both["a"], image)
    assert torch.equal(dictionary("a", 0.0)({"a": image})["a"], image)
    changed = [not torch.equal(dictionary("a", 0.3).set_random_state(n)({"a": image})["a"], image) for n in range(60)]
    assert 8 <= sum(changed) <= 28


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r"dynamic_range=0 dB must be positive"):
        RandSpeckle(dynamic_range=0)
    with pytest.raises(ValueError, match="sliders=1: use 2 or more"):
        RandGain(sliders=1)
