# SPDX-License-Identifier: Apache-2.0
"""The order of the training data: shuffled, complete, and the same after a resume."""

from __future__ import annotations

from collections import Counter

import pytest

from medcf.training.sampler import EpochSampler


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
