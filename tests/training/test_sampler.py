# SPDX-License-Identifier: Apache-2.0
"""The order of the training data: shuffled, complete, and the same after a resume."""

from __future__ import annotations

from collections import Counter

import pytest

from medcf.training.sampler import EpochSampler, PhasedSampler


def stream(sampler: EpochSampler, epochs: range) -> list[int]:
    order = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        order += list(sampler)
    return order


def test_every_pass_over_the_data_holds_every_sample_once():
    order = stream(EpochSampler(range(10), batch_size=3, epoch_length=2), range(1, 6))  # 30 samples: three passes
    assert len(order) == 30
    passes = [order[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1]


def test_an_epoch_depends_on_seed_and_number_alone():
    build = lambda seed: EpochSampler(range(100), batch_size=4, epoch_length=3, seed=seed)  # noqa: E731
    assert stream(build(0), range(7, 8)) == stream(build(0), range(1, 8))[-12:]
    assert stream(build(0), range(7, 8)) != stream(build(1), range(7, 8))


def test_processes_share_the_stream_of_one():
    shares = [stream(EpochSampler(range(12), 2, 3, num_replicas=2, rank=rank), range(1, 3)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 12
    assert set(shares[0][:6]).isdisjoint(shares[1][:6])
    assert Counter(shares[0] + shares[1]) == Counter(list(range(12)) * 2)


def test_the_length_is_that_of_an_epoch():
    assert len(EpochSampler(range(5), batch_size=4, epoch_length=3)) == 12


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="empty"):
        EpochSampler([], 1, 1)


def test_kinds_follow_one_another_each_shuffled_and_complete():
    labels = [0, 1] * 6 + [2] * 2
    sampler = PhasedSampler(labels, labels, [(1, 3), (0, 2), (2, 1)], batch_size=4, epoch_length=2)
    seen = []
    for epoch in (1, 2, 3, 4):
        sampler.set_epoch(epoch)
        seen += list(sampler)
    drawn = [labels[index] for index in seen]
    assert drawn == [1] * 12 + [0] * 8 + [2] * 12
    assert sorted(seen[:6]) == sorted(seen[6:12]) == [1, 3, 5, 7, 9, 11]
    assert seen[:6] != seen[6:12]


def test_processes_share_each_phase():
    labels = [0, 1] * 8
    parts = [list(PhasedSampler(labels, labels, [(1, 2), (0, 2)], 2, 4, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert all([labels[index] for index in part] == [1] * 4 + [0] * 4 for part in parts)
    assert sorted(parts[0][:4] + parts[1][:4]) == [1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize("phases", [[], [(7, 2)], [(0, 0)]])
def test_a_phase_without_images_or_iterations_is_refused(phases):
    with pytest.raises(ValueError, match="each needs a kind"):
        PhasedSampler([0, 1], [0, 1], phases, 1, 1)


def test_a_phase_may_mix_kinds():
    kinds = ["real"] * 3 + ["synthetic"] * 5
    sampler = PhasedSampler(kinds, kinds, [(("real", "synthetic"), 4), (("real",), 3)], batch_size=2, epoch_length=7)
    drawn = list(sampler)
    assert sorted(drawn[:8]) == list(range(8))
    assert sorted(drawn[8:11]) == sorted(drawn[11:]) == [0, 1, 2]
