# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the Fréchet distance, small."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import frechet
from medcf.metrics.frechet import frechet_distance


def test_both_forms_agree_in_the_printed_table(monkeypatch, capsys) -> None:
    options = ["--cases", "12", "--reference", "14", "--features", "40", "--resamples", "20"]
    monkeypatch.setattr(sys, "argv", ["frechet", *options])
    frechet.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("N = 12, M = 14, D = 40")
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines[2:]}
    assert float(cells["relative difference"]) < 1e-6
    assert float(cells["medcf.metrics.frechet_distance"]) > 0
    low, high = map(float, cells["95 % interval, 20 half-samples"].split(" to "))
    assert low < float(cells["medcf.metrics.frechet_distance"]) < high


def test_the_textbook_form_is_the_metric() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 8)), rng.normal(0.3, 1.2, size=(60, 8))
    assert frechet.textbook(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-9)
