# SPDX-License-Identifier: Apache-2.0
"""Progress is a bar on a terminal and a few lines in a file."""

from __future__ import annotations

import io
import sys

import pytest

from medcf.runtime.progress import progress_bar


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def run(monkeypatch, terminal, show=True):
    """Count through ten cases of a thousand steps each, and return what was written."""
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(10, "cases", unit="case", show=show) as bar:
        for _ in range(10):
            with progress_bar(1000, "Diff-ICE", unit="step", show=show, inner=True) as steps:
                for _ in range(1000):
                    steps.update()
            bar.update()
    return stream.getvalue()


def test_a_file_gets_a_line_now_and_then_and_the_last_one(monkeypatch):
    written = run(monkeypatch, terminal=False)
    lines = [line for line in written.replace("\r", "\n").split("\n") if line.strip()]
    assert len(lines) <= 4
    assert "10 of 10 cases" in lines[-1]
    assert "Diff-ICE" not in written


def test_a_terminal_gets_both_bars_and_the_inner_one_goes(monkeypatch):
    written = run(monkeypatch, terminal=True)
    assert "Diff-ICE" in written
    assert "10/10" in written
    assert "Diff-ICE" not in written.rsplit("\r", 1)[-1]


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_shown_where_it_is_switched_off(monkeypatch, terminal):
    assert run(monkeypatch, terminal, show=False) == ""
