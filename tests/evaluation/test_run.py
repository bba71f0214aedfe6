# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves: figures on the screen and in a file that any JSON reader takes."""

from __future__ import annotations

import json
import math

from medcf.evaluation import run_evaluation


class Constant:
    """An evaluation whose figures are given."""

    def __init__(self, figures, rows):
        self.figures, self.table = figures, rows
        self.metrics = figures

    def run(self, loader, device="cpu"):
        return dict(self.figures)


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def strict(text):
    """Read JSON as its standard has it: without NaN."""
    return json.loads(text, parse_constant=refuse)


def test_figures_that_do_not_exist_are_null(tmp_path, capsys):
    figures = {"flips": 0.5, "volumes": {"r": math.nan, "interval": (math.inf, 2.0)}, "cases": 3}
    evaluation = Constant(figures, [{"case": "a", "slope": math.nan}])
    found = run_evaluation(evaluation, [], tmp_path, further=[(Constant({"accuracy": math.nan}, []), [])])
    written = strict((tmp_path / "evaluation.json").read_text())
    assert written["volumes"] == {"r": None, "interval": [None, 2.0]}
    assert written["accuracy"] is None
    assert written["per_case"] == [{"case": "a", "slope": None}]
    assert (written["flips"], written["cases"]) == (0.5, 3)
    assert written["seconds"] >= 0
    assert strict(capsys.readouterr().out) == {key: written[key] for key in found}
