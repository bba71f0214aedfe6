# SPDX-License-Identifier: Apache-2.0
"""The benchmark of stacked forwards runs, compares what is equal, and counts what is computed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from monai.networks.blocks.selfattention import SABlock

from benchmarks import stacked
from medcf.networks.attention_injection import AttentionInjection


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_whole_job_runs_small_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(stacked, "count_paper", lambda: 4 * 10**14)
    stacked.main(["--small", "--device", "cpu", "--repeats", "1", "--steps", "3", "--peak", "0.5"])
    text = capsys.readouterr().out
    assert text.startswith("SMALL")
    result = json.loads(text.splitlines()[1])
    assert [row["rows"] for row in result["forwards"]] == [[2, 1, 1], [4, 2, 2]]
    rows = {(row["condition"], row["targets"]): row["rows"] for row in result["targets"]}
    assert rows == {("same", k): [3 * k + 1, 4 * k] for k in (1, 2, 4)} | {
        ("null", k): [2 * k + 1, 3 * k] for k in (1, 2, 4)
    }
    assert all(row["largest_difference"] < 1e-4 for row in result["targets"])
    wanted = result["operations_of_a_step"] * 3 / result["seconds_a_volume"] / 0.5e12
    assert result["share_of_peak"] == pytest.approx(wanted)
    assert "| null | 4 | 9 / 12 |" in text
    assert "0.400 PFLOP" in text


def test_forwards_apart_compute_what_the_stack_computes():
    network = stacked.build(stacked.SETTINGS["small"], torch.device("cpu"))
    image = torch.rand(1, 1, 8, 8, 8)
    together = stacked.plan(0, 3.0, "same")
    alone = [stacked.plan(label, 1.0, "same") for label in (0, stacked.NULL)]
    with torch.no_grad(), AttentionInjection(network) as injection:
        stack = stacked.forward(network, image, together, injection)()
        parts = [stacked.forward(network, image, rows, injection)() for rows in alone]
    assert stack.abs().max() > 0.01
    torch.testing.assert_close(stack[:2], torch.cat([part[:1] for part in parts]), rtol=0, atol=1e-5)


def test_operations_include_attention_on_a_cpu_too(monkeypatch):
    network = stacked.build(stacked.SETTINGS["small"], torch.device("cpu"))
    image = torch.zeros(1, 1, 8, 8, 8)
    total = stacked.count_operations(network, image)
    planned = stacked.plan
    monkeypatch.setattr(stacked, "plan", lambda *args: replace(planned(*args), reference=[0, 1, 2, 3]))
    blocks = sum(isinstance(module, SABlock) for module in network.modules())
    tokens, channels = 4**3, 8
    extra = total - stacked.count_operations(network, image)
    assert extra == blocks * 2 * (2 * 2 * tokens * tokens * channels)  # two rows read as many tokens again
    assert next(network.parameters()).device.type == "cpu"
