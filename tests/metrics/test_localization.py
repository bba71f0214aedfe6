# SPDX-License-Identifier: Apache-2.0
"""Localization of a change against scikit-learn and exhaustive search, and on maps that know nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor

from medcf.metrics.localization import ChangeAUPRC, ChangeIoU, ChangeLocalization, PointingGame

ALL: list[Callable[[], ChangeLocalization]] = [ChangeAUPRC, ChangeIoU, PointingGame]


def draw(cases: int = 4, levels: int = 25, shape: tuple[int, ...] = (12, 10)) -> tuple[Tensor, Tensor]:
    """Maps with many equal values that know a little about the truth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(cases, 1, *shape, generator=generator) < 0.2
    maps = torch.rand(cases, 1, *shape, generator=generator) + 0.4 * truth
    return (maps * levels).round() / levels, truth


def test_average_precision_equals_scikit_learns_with_ties() -> None:
    maps, truth = draw()
    metric = ChangeAUPRC()
    metric(maps, truth)
    expected = [average_precision_score(t.flatten(), m.flatten()) for m, t in zip(maps, truth, strict=True)]
    np.testing.assert_allclose(metric.per_case(), expected, rtol=1e-9)
    np.testing.assert_allclose(metric.chance_per_case(), truth.flatten(1).double().mean(1), rtol=1e-9)
    assert metric.aggregate() == pytest.approx(np.mean(expected))


def test_the_best_iou_is_that_of_an_exhaustive_search() -> None:
    maps, truth = draw()
    metric = ChangeIoU()
    metric(maps, truth)
    for value, score, true in zip(metric.per_case(), maps, truth, strict=True):
        searched = [jaccard_score(true.flatten(), (score >= level).flatten()) for level in score.unique()]
        assert float(value) == pytest.approx(max(searched))


def test_the_pointing_game_counts_hits_of_the_maximum_within_the_tolerance() -> None:
    truth = torch.zeros(3, 1, 9, 9, dtype=torch.bool)
    truth[:, 0, 4, 4] = True
    maps = torch.zeros(3, 1, 9, 9)
    maps[0, 0, 4, 4] = maps[1, 0, 3, 3] = maps[2, 0, 0, 0] = 1
    assert PointingGame()(maps, truth)[:, 0].tolist() == [1, 0, 0]
    tolerant = PointingGame(tolerance=1.5)
    assert tolerant(maps, truth)[:, 0].tolist() == [1, 1, 0]
    assert tolerant.chance() == pytest.approx(9 / 81)


@pytest.mark.parametrize(("tolerance", "hits"), [(1.99, [1, 0, 0]), (2.0, [1, 1, 0]), (5.0, [1, 1, 1])])
def test_a_maximum_exactly_as_far_away_as_the_tolerance_is_a_hit(tolerance: float, hits: list[int]) -> None:
    truth = torch.zeros(3, 1, 9, 9, dtype=torch.bool)
    truth[:, 0, 2, 2] = True
    maps = torch.zeros(3, 1, 9, 9)
    maps[0, 0, 2, 3] = maps[1, 0, 2, 4] = maps[2, 0, 5, 6] = 1  # 1, 2 and 5 pixels away
    assert PointingGame(tolerance)(maps, truth)[:, 0].tolist() == hits


@pytest.mark.parametrize("make", ALL)
def test_a_constant_map_gets_exactly_the_level_of_chance(make: Callable[[], ChangeLocalization]) -> None:
    _, truth = draw()
    for level in (0.0, 3.0):
        metric = make()
        metric(torch.full(truth.shape, level), truth)
        torch.testing.assert_close(metric.per_case(), metric.chance_per_case())


@pytest.mark.parametrize("make", ALL)
def test_the_truth_itself_scores_one_and_a_scaled_map_scores_the_same(make: Callable[[], ChangeLocalization]) -> None:
    maps, truth = draw()
    metric = make()
    metric(truth.float(), truth)
    assert metric.per_case().tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(make()(maps, truth), make()(7 * maps, truth))


@pytest.mark.parametrize("make", ALL)
def test_a_map_of_everything_but_the_truth_falls_to_chance_or_below(make: Callable[[], ChangeLocalization]) -> None:
    _, truth = draw()
    metric = make()
    metric((~truth).float(), truth)
    assert bool((metric.per_case() <= metric.chance_per_case() + 1e-12).all())


@pytest.mark.parametrize("make", ALL)
def test_nothing_outside_the_mask_counts_and_cases_without_change_are_left_out(
    make: Callable[[], ChangeLocalization],
) -> None:
    maps, truth = draw()
    mask = torch.zeros_like(truth)
    mask[..., :5] = True
    inside, cropped = make(), make()
    inside(maps + 100 * ~mask, truth, mask=mask)
    cropped(maps[..., :5], truth[..., :5])
    torch.testing.assert_close(inside.per_case(), cropped.per_case())
    truth[2:] &= ~mask[2:]
    metric = make()
    metric(maps, truth, mask=mask)
    assert metric.per_case().isnan().tolist() == [False, False, True, True]
    assert metric.counts().entered == 2
    assert metric.counts().left_out == {"no true change": 2}
    assert metric.aggregate() == pytest.approx(float(inside.per_case()[:2].mean()))


def test_volumes_give_what_the_same_pixels_give_in_a_plane() -> None:
    maps, truth = draw(shape=(6, 5, 4))
    torch.testing.assert_close(
        ChangeAUPRC()(maps, truth), ChangeAUPRC()(maps.flatten(3), truth.flatten(3)), rtol=0, atol=0
    )


@pytest.mark.parametrize("bad", [float("nan"), -0.5])
def test_a_signed_or_broken_map_is_refused(bad: float) -> None:
    maps, truth = draw(1)
    maps[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="absolute difference"):
        ChangeAUPRC()(maps, truth)


def test_the_interval_covers_the_mean_and_follows_the_groups() -> None:
    maps, truth = draw(cases=12)
    metric = ChangeAUPRC()
    metric(maps, truth)
    low, high = metric.interval(groups=[f"subject {case // 2}" for case in range(12)])
    assert low < metric.aggregate() < high
