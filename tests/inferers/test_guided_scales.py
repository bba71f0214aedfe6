# SPDX-License-Identifier: Apache-2.0
"""The search of guided methods for the smallest scale that brings an image to the target."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medcf.inferers import DiffICEInferer
from medcf.inferers.passes import Pass
from medcf.schedulers import RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]


def test_scales_are_tried_smallest_first_and_only_as_far_as_needed(make, network, images):
    scales = (30, 1, 6)
    result = make(classifier_scales=scales, num_iterations=1).explain(images, network, IDS)
    singles = {s: make(classifier_scales=s, num_iterations=1).explain(images, network, IDS) for s in sorted(scales)}
    assert len(set(result.scale.tolist())) > 1  # images differ in the scale they need
    for i in range(4):
        tried = []
        for scale, single in singles.items():
            tried.append(scale)
            if single.flipped[i]:
                break
        assert result.scale[i] == tried[-1]
        assert result.num_function_evaluations[i] == 5 * len(tried)
        # noise is common to the scales: the search returns what the scale alone does
        torch.testing.assert_close(result.image[i], singles[tried[-1]].image[i], rtol=0, atol=1e-5)


class Narrow(nn.Module):
    """Never sure of class 1, and least unsure at one brightness: a scale that overshoots loses confidence."""

    def forward(self, image):
        logit = -1 - 3 * (image.flatten(1).mean(1) - 0.3).pow(2)
        return torch.stack([-logit, logit], dim=1)


def test_most_confident_result_stays_when_no_scale_flips(make, brightness, network, images):
    overshot = make(Narrow(), classifier_scales=(0, 10, 10000), num_iterations=1).explain(images, network, IDS)
    assert overshot.scale.tolist() == [10.0] * 4
    torch.testing.assert_close(overshot.confidences[:, 1], Narrow()(overshot.image).softmax(1)[:, 1])
    result = make(brightness(middle=3.0, slope=1.0), classifier_scales=(0, 100, 10)).explain(images, network, IDS)
    assert not result.flipped.any()
    assert result.num_function_evaluations.tolist() == [2 * 3 * 5] * 4
    assert result.scale.tolist() == [100.0] * 4
    assert (result.confidences[:, 2] > result.confidences[:, 0]).all()


@dataclass
class ToldChain:
    """Returns images of a tenth of its scale, which stands in place of its loss."""

    start: torch.Tensor
    loss: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    @property
    def denoiser(self):
        return SimpleNamespace(num_function_evaluations=torch.zeros(1, dtype=torch.long))

    def run(self, _hooks):
        return torch.zeros_like(self.start) + self.loss.reshape(-1, 1, 1, 1) / 10


def scale_of_rows(run, loss, index, scales, decode):
    return torch.tensor(scales).repeat_interleave(len(index) // len(scales))


class Told(DiffICEInferer):
    """Nothing but its scales decides."""

    def hooks(self, chain):
        return []


def three_classes(image):
    """The target, class 1, is less likely at 0.2 than at 0.1, where class 2 is still more likely."""
    table = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.44, 0.46], [0.3, 0.4, 0.3], [0.05, 0.9, 0.05]])
    return table.log()[(10 * image.flatten(1).mean(1)).round().long()]


@pytest.mark.parametrize("batched", [False, True])
def test_the_smallest_scale_that_flips_is_kept_though_one_that_does_not_was_surer(network, batched, monkeypatch):
    monkeypatch.setattr("medcf.inferers.scales._bound", scale_of_rows)
    monkeypatch.setattr(Pass, "chain", lambda run, index, condition, start: ToldChain(start))
    options = {"classifier_scales": (1, 2, 3), "batched_scales": batched, "num_inference_steps": 20}
    method = Told(RespacedDDPMScheduler(1000), three_classes, 1, num_iterations=1, progress=False, **options)
    result = method.explain(torch.zeros(2, 1, 4, 4), network)
    assert result.scale.tolist() == [2, 2]
    assert result.flipped.all()
    torch.testing.assert_close(result.confidences, torch.tensor([[0.1, 0.4]] * 2))
    torch.testing.assert_close(result.image, torch.full((2, 1, 4, 4), 0.2))
