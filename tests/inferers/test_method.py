# SPDX-License-Identifier: Apache-2.0
"""The passes that all methods share: which images leave, and what is kept of them."""

from __future__ import annotations

import pytest
import torch

from medcf.inferers import Method


class Scripted(Method):
    """Adds 0.1 in each pass, and is as sure afterwards as it was told."""

    needs_network = False
    confidences = ((0.5, 0.625), (0.75, 0.75), (0.875, 1.0))  # of two images in three passes

    def run_pass(self, run):
        run.state.current[run.index] += 0.1
        run.state.confidence[run.index] = torch.tensor(self.confidences[run.number])[run.index]


def dark(image):
    return torch.tensor([[2.0, 0.0]]).expand(len(image), 2)


@pytest.mark.parametrize(
    ("threshold", "passes"), [(None, [3, 3]), (1.0, [3, 3]), (0.75, [2, 2]), (0.625, [2, 1]), (0.5, [1, 1])]
)
def test_an_image_leaves_once_it_reaches_the_threshold_exactly(threshold, passes):
    method = Scripted(classifier=dark, target=1, num_iterations=3, confidence_threshold=threshold, progress=False)
    result = method.explain(torch.zeros(2, 1, 4, 4), None)
    assert result.iterations.tolist() == passes
    for image, count in zip(result.image, passes, strict=True):
        torch.testing.assert_close(image, torch.full((1, 4, 4), 0.1 * count))
