# SPDX-License-Identifier: Apache-2.0
"""The control that does nothing says that it did nothing."""

from __future__ import annotations

import torch

IDS = ["a", "b", "c", "d"]


def test_input_comes_back_and_nothing_is_claimed(make_method, images):
    images[2] += 0.9
    result = make_method("unchanged").explain(images, None, IDS)
    assert torch.equal(result.image, images)
    assert result.image.data_ptr() != images.data_ptr()
    assert not result.flipped.any()
    assert result.unchanged.tolist() == [False, False, True, False]  # of the target class from the start
    assert result.difference.abs().max() == 0
    assert result.total_function_evaluations == 0
    assert torch.equal(result.confidences[:, 0], result.confidences[:, 1])
