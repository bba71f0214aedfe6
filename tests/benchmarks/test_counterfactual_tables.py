# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from benchmarks.counterfactual.environment import describe_command
from benchmarks.counterfactual.rows import (
    ABLATION,
    METHODS,
    SPEED,
    expected,
    select,
    toward_own_class,
    unguided,
)
from benchmarks.counterfactual.tables import Figure, Measure, insert, insert_or_write, markdown, read_csv, write_csv
from medcf.registry import METHODS as REGISTRY

FLIPS = Measure("flips", "flips", "validity", "↑", 0, percent=True)
ERROR = Measure("error", "error", "truth", "↓", 2)


ELSEWHERE = ("controlcg", "ilvr", "ddim_inversion")  # compared on brains


def test_a_figure_is_printed_with_its_interval():
    assert FLIPS.show(Figure(0.5, 0.25, 0.75, 8)) == "50 % [25 %, 75 %]"
    assert ERROR.show(Figure(1.234)) == "1.23"
    assert ERROR.show(Figure(math.nan)) == "-"
    assert FLIPS.show(Figure(1.0, 1.0, 1.0, 8)) == "100 %"


def test_each_theme_is_a_table_and_unmeasured_columns_are_left_out():
    text = markdown(["a", "b"], [{"flips": Figure(1.0)}, {"flips": Figure(0.5)}], [FLIPS, ERROR])
    assert text.splitlines() == ["| validity | flips ↑ |", "| --- | --- |", "| a | 100 % |", "| b | 50 % |"]


def test_csv_keeps_values_intervals_and_counts(tmp_path):
    rows = [{"flips": Figure(0.5, 0.25, 0.75, 8)}, {"error": Figure(1.5, 1.0, 2.0, 4)}]
    write_csv(tmp_path / "t.csv", ["a", "b"], rows)
    assert read_csv(tmp_path / "t.csv") == (["a", "b"], rows)


def test_tables_go_between_their_marks_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n", encoding="utf-8")
    insert(page, "x", "new\n")
    assert page.read_text(encoding="utf-8") == "before\n<!-- x: begin -->\nnew\n<!-- x: end -->\nafter\n"
    with pytest.raises(ValueError, match="must hold"):
        insert(page, "y", "new")


def test_a_text_without_a_place_on_the_page_gets_a_file_of_its_own(tmp_path):
    page = tmp_path / "page.md"
    insert_or_write(page, "x", "text", "task_x", "Task: x")
    assert (tmp_path / "task_x.md").read_text() == "# Task: x\n\ntext\n"
    page.write_text("<!-- x: begin -->\nold\n<!-- x: end -->\n")
    insert_or_write(page, "x", "new", "task_x", "Task: x")
    insert_or_write(page, "y", "other", "task_y", "Task: y")
    assert page.read_text() == "<!-- x: begin -->\nnew\n<!-- x: end -->\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.md", "task_x.md", "task_y.md"]


def test_the_table_has_every_method_its_controls_and_unique_files():
    methods = [row for row in METHODS if not row.control and row.num_seeds == 1]
    names = {row.name for row in METHODS}
    assert {row.overrides["method"] for row in METHODS} >= {name for name in REGISTRY.names if name not in ELSEWHERE}
    assert {f"{row.name}_own" for row in methods if row.overrides["method"] in ("ddpm_inversion", "sdedit")} <= names
    assert {"diffice_unguided", "diffice_everywhere_unguided"} <= names
    assert {"unchanged", "attack", "diffice_expected_4", "diffice_expected_8"} <= names
    for study in (METHODS, SPEED, ABLATION):
        assert len({row.name for row in study}) == len(study)


def test_a_control_changes_what_it_is_named_after_and_nothing_else():
    row = METHODS[0]
    own, without, mean = toward_own_class(row), unguided(row), expected(row, 4)
    assert own.overrides == row.overrides == mean.overrides
    assert (own.toward_own_class, without.toward_own_class) == (True, False)
    assert without.overrides == {**row.overrides, "shared_options#classifier_scales": [0]}
    assert (mean.num_seeds, mean.control, own.control, without.control) == (4, False, True, True)
    assert toward_own_class(mean).num_seeds == 4


def test_an_unknown_row_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match=r"dimes.*diffice_single"):
        select(METHODS, ["dimes"])


def test_a_command_names_no_folder_of_the_machine(tmp_path):
    shown = describe_command("benchmarks.counterfactual", ["--tables", str(tmp_path / "fetal_us"), "--count", "4"])
    assert shown == 'python -m benchmarks.counterfactual --tables "$FETAL_US" --count 4'
