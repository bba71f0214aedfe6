# SPDX-License-Identifier: Apache-2.0
"""Tables that any spreadsheet opens, whatever they hold."""

from __future__ import annotations

import csv

from medcf.runtime.atomic import write_csv


def test_a_table_is_utf8_whatever_it_holds_and_runs_nothing(tmp_path):
    cells = ("=1+1", "+1", "-1", "@x", "\tx", "x=1")
    rows = [{"file": "M\udcfcller.png", "note": cell, "number": -1.5} for cell in cells]
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        back = list(csv.DictReader(file))
    assert [row["note"] for row in back] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "x=1"]
    assert back[0]["file"] == "M\\udcfcller.png"
    assert back[0]["number"] == "-1.5"
