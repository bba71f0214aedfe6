# SPDX-License-Identifier: Apache-2.0
"""The benchmark of one volume at the paper's size runs, counts what it says, and judges the limit."""

from __future__ import annotations

import json

import pytest
from torch import nn

from benchmarks import volume_size


def test_it_runs_small_and_says_so(capsys):
    volume_size.main(["--small", "--device", "cpu", "--channels-last", "--rows-at-once", "1"])
    text = capsys.readouterr().out
    assert "SMALL" in text
    assert "channels_last, rows_at_once 1" in text
    figures = json.loads(text.splitlines()[-1])
    assert figures["rows"] == 4  # [x|c, x|null, y|c, y|null]
    assert figures["operations"] == 50 * figures["operations_per_step"]
    assert figures["process_bytes"] > figures["tensor_bytes"] > 4 * 16**3 * 8 * 4  # an activation of four rows
    assert figures["rows_of_forwards"] == [4]
    assert figures["seconds_per_step"] > 0


def test_operations_are_those_of_the_layers_on_four_rows():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv3d(1, 5, 3, padding=1, bias=False)
            self.attention = volume_size.read_config(small=True).get_parsed_content("network_def").unet.middle_block

        def forward(self, image, timesteps, class_labels):
            return self.layer(image)

    assert volume_size.count_operations(Plain(), [4, 6, 8]) == 2 * 27 * 5 * 4 * 6 * 8 * 4


def test_the_papers_run_costs_what_its_size_implies(monkeypatch):
    config = volume_size.read_config(small=False)
    network, size = config.get_parsed_content("network_def"), config.get_parsed_content("spatial_size")
    total = volume_size.count_operations(network, size)
    assert 50 * total == pytest.approx(0.38e15, rel=0.01)
    monkeypatch.setattr(volume_size, "REFERENCE", (0, 1, 2, 3))
    tokens, channels, blocks = 20 * 24 * 20, 128, 4  # down, middle and two of the way up
    extra = total - volume_size.count_operations(network, size)
    assert extra == blocks * 2 * (2 * 2 * tokens * tokens * channels)  # two rows read as many tokens again


def test_the_report_says_when_the_limit_is_exceeded():
    figures = {
        "peak_bytes": 7e9, "volume": "80 x 96 x 80", "rows": 4, "device": "CPU", "options": "32 bits", "steps": 50,
        "tensor_bytes": 5e9, "process_bytes": 8e9, "seconds_per_step": 1.0, "wall_seconds_per_step": 1.0,
        "operations_per_step": 1e12, "operations": 5e13, "operations_per_second": 1e12, "small": False,
        "targets": 1, "rows_of_forwards": [4], "steps_timed": 1, "peak_tflops": 4.0,
    }  # fmt: skip
    assert "ABOVE 6 GB" in volume_size.report(figures)
    assert "within 6 GB" in volume_size.report(figures | {"peak_bytes": 5e9})
    assert "| time of 50 steps | 50 s, from 1 timed |" in volume_size.report(figures)
    assert "25.0% of the peak" in volume_size.report(figures)


@pytest.mark.parametrize(("budget", "rows"), [(None, [7]), (1e-6, [4])])
def test_two_targets_are_split_into_forwards_that_fit_the_budget(budget, rows):
    options = volume_size.parse(["--small", "--device", "cpu", "--targets", "2"])
    options.memory_budget = budget
    figures = volume_size.measure(options)
    assert figures["rows_of_forwards"] == rows
    assert figures["rows"] == (7 if budget is None else 8)  # together the null reference is shared


@pytest.mark.parametrize("chosen", [False, True])
def test_compiling_is_left_out_of_the_measured_run(monkeypatch, chosen):
    asked, calls = [], []
    monkeypatch.setattr(volume_size, "accelerate", lambda network, **options: asked.append(options["compile"]))
    explain = volume_size.AttentionInjectionInferer.explain_targets
    monkeypatch.setattr(
        volume_size.AttentionInjectionInferer,
        "explain_targets",
        lambda *args, **options: calls.append(1) or explain(*args, **options),
    )
    volume_size.measure(volume_size.parse(["--small", "--device", "cpu", *(["--compile"] if chosen else [])]))
    assert asked == [chosen]
    assert len(calls) == 1 + chosen  # the first run compiles
