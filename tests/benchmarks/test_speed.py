# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of speed run, count what is called, and extrapolate by the right rule."""

from __future__ import annotations

import argparse
import math
import mmap

import pytest
import torch
from torch import nn

from benchmarks import gradients, loop, paper_size, timing
from benchmarks import options as options_of_speed
from benchmarks.paper import SMALL, build


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_whole_job_at_paper_size_runs_small_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["paper_size", "--small", "--device", "cpu", "--amp", "--channels-last"])
    paper_size.main()
    text = capsys.readouterr().out
    assert "SMALL" in text
    assert "| images, steps of all passes | 2, 6 |" in text
    assert "| options | amp, channels_last |" in text
    shares = [float(word.rstrip("%),")) for word in text.split("(denoiser")[1].split("|")[0].split() if "%" in word]
    assert sum(shares) == pytest.approx(100, abs=2)


def test_operations_are_those_of_the_layers():
    class Plain(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.layer = nn.Conv2d(1, channels, 3, padding=1, bias=False).requires_grad_(False)

        def forward(self, image, timesteps=None):
            return self.layer(image)

    networks = build("cpu", SMALL)._replace(denoiser=Plain(4), classifier=Plain(5), perceptual=Plain(7), size=(8, 10))
    counted = paper_size.count_operations(networks, batch=3)
    one = 2 * 9 * 3 * 8 * 10  # a multiply-add for each kernel tap, output channel, image and pixel
    assert counted["denoiser"] == 4 * one
    assert counted["classifier"] == 2 * 5 * one  # forward, and backward to the image but not to frozen weights
    assert counted["perceptual"] == 2 * 7 * one


def test_the_matrix_rate_is_a_rate():
    rate = paper_size.matrix_rate(torch.device("cpu"), 128, repeats=3)
    assert 1e8 < rate < 1e15


def options(**changes):
    values = {
        "paper_size": False, "height": 32, "width": 32, "images": 1, "steps": 10, "strength": 0.6, "steps_timed": None,
        "cold": False, "threads": 1, "device": "cpu",
    }  # fmt: skip
    return argparse.Namespace(**(values | changes))


def test_gradients_extrapolate_a_part_to_the_whole(monkeypatch):
    monkeypatch.setattr(gradients, "demo_size", lambda height, width: SMALL)
    whole = gradients.measure("dime", options())
    part = gradients.measure("dime", options(steps_timed=4))
    assert whole["evaluations"] == part["evaluations"] == 21
    assert whole["seconds"] == whole["measured"]
    assert part["measured"] < whole["measured"]
    assert part["seconds"] == pytest.approx(whole["seconds"], rel=0.5)
    text = gradients.table({"x0": part | {"peak": 2.0}, "xt": part | {"peak": 6.0}}, images=1)
    assert "EXTRAPOLATED to 6 steps from 4 timed ones" in text
    assert "| xt | " in text
    assert text.splitlines()[3].endswith("| 3.00 |")


def test_peak_memory_is_that_above_the_start():
    memory = gradients.Memory("cpu")
    if math.isnan(memory.before):
        pytest.skip("needs Linux's /proc")
    with mmap.mmap(-1, 64 * 2**20) as held:  # pages of its own, which no allocator has held before
        for _ in range(64):
            held.write(bytes(2**20))
    assert 60 < memory.peak() < 80
    assert gradients.Memory("cpu").peak() < 30


def test_every_call_of_a_pass_is_replayed(monkeypatch):
    inferer, network, images = loop.load("cpu", steps=20, strength=0.1, batch=2)
    calls = loop.record(inferer, network, images)
    assert len(calls.denoiser) == len(calls.guidance) == 2
    assert len(calls.classifier) == 2  # before and after
    assert len(calls.features) == 1
    assert torch.equal(calls.features[0], images)
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for part in loop.replay(inferer, network, calls).values():
        part()
    assert all(torch.equal(sample, call[0]) for sample, call in zip(seen, calls.denoiser, strict=True))


def test_functions_take_turns_and_are_warmed_up():
    order = []
    seconds = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert timing.median_ratio([2.0, 9.0, 4.0], [1.0, 1.0, 2.0]) == 2.0


def test_every_combination_of_options_is_compared(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["options", "--device", "cpu", "--batch", "1", "--repeats", "1"])
    options_of_speed.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == ["none", "channels_last", "amp", "amp, channels_last"]
    changes = [float(row[3].strip(" |")) for row in rows]
    assert changes[0] == 0
    assert 0 <= changes[1] < 1e-5 < changes[2] < 0.02
