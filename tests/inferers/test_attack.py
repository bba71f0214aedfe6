# SPDX-License-Identifier: Apache-2.0
"""The gradient attack: flips the classifier within its ball, and stops there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

IDS = ["a", "b", "c", "d"]


def test_linear_classifier_is_flipped_by_the_fewest_steps(make_method, images):
    result = make_method("attack", epsilon=0.8, step_size=0.02).explain(images, None, IDS)
    for i in range(4):  # every pixel goes the same way until the mean passes zero
        steps = math.floor(-float(images[i].mean()) / 0.02) + 1
        torch.testing.assert_close(result.image[i], images[i] + steps * 0.02, rtol=0, atol=1e-6)
    assert result.flipped.all()
    assert (result.confidences[:, 1] < 0.56).all()  # just over the boundary
    assert result.iterations.tolist() == [1] * 4


def test_no_pixel_leaves_the_ball_or_the_range(make_method, images):
    result = make_method("attack", epsilon=0.1, num_steps=50).explain(images, None, IDS)
    assert result.difference.abs().max() <= 0.1 + 1e-6
    assert result.flipped.tolist() == [True, False, False, False]
    high = make_method("attack", epsilon=0.9, num_steps=50).explain(images.clamp(max=-0.9), None, IDS)
    assert high.image.abs().max() <= 1


def test_network_is_never_called(make_method, images):
    class Forbidden(nn.Module):
        def forward(self, *_args, **_kwargs):
            raise AssertionError

    result = make_method("attack").explain(images, Forbidden(), IDS)
    assert result.total_function_evaluations == 0
    assert result.scale.isnan().all()


def test_change_is_adversarial_noise_and_no_brightness_an_observer_sees(make_method):
    """A classifier that reads a hidden pattern flips, while a judge of brightness sees nothing."""
    pattern = torch.where(torch.arange(64).reshape(1, 1, 8, 8) % 2 == 0, 1.0, -1.0)

    def classifier(image):
        logit = ((image - image.mean(dim=(2, 3), keepdim=True)) * pattern).sum(dim=(1, 2, 3)) - 0.5
        return torch.stack([-logit, logit], dim=1)

    image = torch.zeros(2, 1, 8, 8)
    result = make_method("attack", classifier=classifier, epsilon=0.05).explain(image, None)
    assert result.flipped.all()
    assert result.image.mean().abs() < 1e-6


@pytest.mark.parametrize("options", [{"epsilon": 0}, {"step_size": -0.1}, {"num_steps": 0}])
def test_wrong_options_are_refused(make_method, options):
    with pytest.raises(ValueError, match="positive"):
        make_method("attack", **options)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_attack_stays_within_the_range_of_an_image(make_method, brightness, sign):
    image = sign * torch.linspace(-0.5, 0.95, 64).reshape(1, 1, 8, 8)
    classifier = brightness(middle=sign * 3.0, slope=sign * 1.0)  # the target is out of reach
    result = make_method("attack", classifier=classifier, epsilon=0.4, num_steps=40).explain(image, None)
    torch.testing.assert_close(result.image, (image + sign * 0.4).clamp(-1, 1))
    assert float(result.image.abs().max()) == 1
