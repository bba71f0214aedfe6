# SPDX-License-Identifier: Apache-2.0
"""Micro-batches by a memory budget: what a forward takes, and what is stacked within it."""

from __future__ import annotations

import pytest
import torch

from medcf.runtime.memory import budget_bytes, micro_batches, peak_bytes

CPU = torch.device("cpu")


def test_peak_counts_living_tensors_once():
    given = torch.ones(1000)

    def run():
        first = given + 1  # 4000
        second = first.view(10, 100) * 2  # 8000
        second.add_(1)
        del first  # 4000
        third = torch.cat([second, second])  # 12 000
        del second
        return third * 1  # 16 000

    assert peak_bytes(run, CPU) == 16000
    assert peak_bytes(lambda: given.mul_(1).view(2, 500), CPU) == 0


def test_peak_of_a_network_grows_with_the_batch():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 1, 3))
    with torch.no_grad():
        one, four = (peak_bytes(lambda n=n: network(torch.zeros(n, 1, 16, 16)), CPU) for n in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.01)
    assert one == 4 * 256 * (1 + 8 + 8)  # the input, the first layer and its activation


def test_runs_are_the_longest_that_fit():
    def cost(run):
        return 2 * len(run) + 1

    assert micro_batches([3, 1, 4, 1, 5], cost, 5) == [[3, 1], [4, 1], [5]]
    assert micro_batches([3, 1, 4], cost, 0) == [[3], [1], [4]]
    assert micro_batches([3, 1, 4], cost, None) == [[3, 1, 4]]
    assert micro_batches([], cost, None) == micro_batches([], cost, 3) == []


def test_budget_is_in_gigabytes():
    assert budget_bytes(6, CPU) == 6e9
    assert budget_bytes(None, CPU) is None
    assert budget_bytes("auto", CPU) is None
    with pytest.raises(ValueError, match="gigabytes above 0"):
        budget_bytes(-1, CPU)


@pytest.mark.gpu
def test_a_gpu_tells_what_is_free():
    device = torch.device("cuda")
    budget = budget_bytes("auto", device)
    assert 0 < budget <= torch.cuda.get_device_properties(device).total_memory
    peak = peak_bytes(lambda: torch.zeros(10**6, device=device) + 1, device)
    assert peak == pytest.approx(8e6, rel=0.05)
