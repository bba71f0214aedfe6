# SPDX-License-Identifier: Apache-2.0
"""The single pass is the first iterate of Diff-ICE, bit for bit."""

from __future__ import annotations

import pytest
import torch

IDS = ["a", "b", "c", "d"]


def test_result_is_the_first_iterate_of_the_iterative_method(make_method, tiny_unet, images):
    unet = tiny_unet()
    options = {"classifier_scales": (6, 30), "seed": 4}
    single = make_method("diffice_single", **options).explain(images, unet, IDS)
    whole = make_method("diffice", num_iterations=3, **options).explain(images, unet, IDS)
    assert torch.equal(single.image, whole.trajectory[:, 1])
    assert single.trajectory.shape[1] == 2
    assert torch.equal(single.scale.nan_to_num(), whole.scales[:, 0].nan_to_num())


def test_number_of_passes_cannot_be_given(make_method):
    with pytest.raises(ValueError, match="num_iterations"):
        make_method("diffice_single", num_iterations=3)
