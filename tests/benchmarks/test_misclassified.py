# SPDX-License-Identifier: Apache-2.0
"""The study of misclassified images: what speaks for an answer, and the share of a map that lies on it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counterfactual.misclassified import draw_groups, evidence, random_share, share_inside

SHOWN = torch.tensor([[[0, 2, 3, 4]]])  # thalami, cavum, fossa
STANDARD = torch.tensor([[[2, 2, 0, 0]]])


def test_thalami_and_cavum_speak_for_a_standard_plane_and_what_differs_from_one_against_it():
    assert evidence(SHOWN, STANDARD, 1).tolist() == [[[False, True, True, False]]]
    assert evidence(SHOWN, STANDARD, 0).tolist() == [[[True, False, True, True]]]
    assert not evidence(STANDARD, STANDARD, 0).any()


def test_a_map_on_the_region_is_inside_and_random_places_get_its_area():
    region = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    region[..., :4, :8] = True
    maps = torch.stack([region[0].float(), torch.ones(1, 16, 16)])
    assert share_inside(maps, region).tolist() == [1.0, 0.125]
    assert random_share(maps, region, places=400).tolist() == pytest.approx([0.125, 0.125], abs=0.03)


def test_misclassified_cases_are_matched_with_correct_ones_of_the_same_answer():
    def standard_always(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(images), -1)

    groups = draw_groups(standard_always, 2, split="val", size=(64, 80), spacing=1.75, limit=16)
    wrong, right = groups.values()
    assert [(case["label"], case["answer"]) for case in wrong] == [(0, 1), (0, 1)]
    assert [(case["label"], case["answer"]) for case in right] == [(1, 1), (1, 1)]
    assert all(case["region"].any() for case in right)
    with pytest.raises(ValueError, match=r"f misclassifies \d+ of 16 phantoms, not 17: raise --limit"):
        draw_groups(standard_always, 17, split="val", size=(64, 80), spacing=1.75, limit=16)
