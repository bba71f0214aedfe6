# SPDX-License-Identifier: Apache-2.0
"""The pages name every option of every method, every page is on the index, and the truth's numbers are the tables'."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from benchmarks.counterfactual.tables import read_csv
from medcf.inferers import options
from medcf.registry import METHODS

DOCS = Path(__file__).parents[1] / "docs"
SHARED = (DOCS / "methods" / "options.md").read_text(encoding="utf-8")
GROUPS = {
    options.Options: "Every method",
    options.ChainOptions: "Methods with a diffusion model",
    options.StrengthOptions: "Methods that noise the input",
    options.GuidanceOptions: "Methods guided by the classifier",
    options.EditOptions: "Methods that edit by a conditional network",
}
#: Rows of truth.md: row of the CSV; columns: figure of the CSV.
TRUTH = {
    "phantoms_methods.csv": {
        "edit-friendly inversion, one sample": "edit-friendly inversion",
        "the same toward the own class": "control: edit-friendly inversion, toward the own class",
        "Direct Inversion": "Direct Inversion",
        "Diff-ICE, the bundle's default, one sample": "Diff-ICE, the bundle's default",
        "its mean over 4 seeds": "Diff-ICE, the bundle's default, mean of 4 seeds",
        "the mean over 4 seeds, λ_c = 0": "control: Diff-ICE, the bundle's default, mean of 4 seeds, λ_c = 0",
        "the mean over 4 seeds, toward the own class": (
            "control: Diff-ICE, the bundle's default, mean of 4 seeds, toward the own class"
        ),
        "λ_c = 0, one sample": "control: Diff-ICE, the bundle's default, λ_c = 0",
        "the input blurred": "control: input blurred by 1 pixels",
        "a regression trained on pairs, the ceiling": "ceiling: regression trained on pairs",
    },
    "controlcg_truth.csv": {
        "edit-friendly inversion, w = 1": "edit-friendly inversion, 0.7, w = 1",
        "the same toward the own class": "control: edit-friendly inversion, 0.7, w = 1, toward the own class",
        "ControlCG, the bundle's default": "ControlCG, the bundle's default (strength 0.6, w = 3)",
        "the input blurred": "control: input blurred by 0.3 voxels",
    },
    "valdmd_healthy.csv": {
        "DDIM inversion, the bundle's default": "DDIM inversion, the bundle's default",
        "Direct Inversion": "Direct Inversion",
        "edit-friendly inversion": "edit-friendly inversion",
        "the default toward the own class": "control: DDIM inversion, the bundle's default, toward the own class",
        "SDEdit, as published": "SDEdit, plain (the paper's way)",
        "the input blurred": "control: input blurred by 0.3 pixels",
    },
}
COLUMNS = {
    "whole image": "truth_ratio",
    "where a structure changes": "truth_changed",
    "at the lesion": "truth_lesion",
    "flips": "flips",
}


def named(text: str) -> set[str]:
    """Return the names in code on a page, such as ``strength`` of `strength=0.2`."""
    return {name for code in re.findall(r"`([^`]+)`", text) for name in re.findall(r"\w+", code)}


def own_options(kind: type[options.Options]) -> list[str]:
    """Return what a method's options have that no group documents, or with another default."""
    found = []
    for field in fields(kind):
        homes = [group for group in GROUPS if issubclass(kind, group) and field.name in group.__annotations__]
        given = {getattr(group, field.name, MISSING) for group in homes}
        if not homes or field.default not in given:
            found.append(field.name)
    return found


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_the_shared_page_has_every_option_of_a_group(group: type[options.Options]) -> None:
    section = SHARED.partition(f"## {GROUPS[group]}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert sorted(rows) == sorted(
        name
        for name in group.__annotations__
        if name not in ("num_inference_steps", "null_class_labels") or group is not options.EditOptions
    )


@pytest.mark.parametrize("name", sorted(METHODS.names))
def test_a_method_s_page_names_every_option_of_its_own_and_links_the_shared_ones(name: str) -> None:
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert "](options.md)" in page
    assert [option for option in own_options(METHODS[name].Options) if option not in named(page)] == []


def test_the_names_that_a_page_lacks_are_noticed() -> None:
    assert {"depth", "inversion_iterations"} <= set(own_options(METHODS["ddim_inversion"].Options))
    assert "strength" in own_options(METHODS["sdedit"].Options)  # with a default of its own
    assert "seed" not in own_options(METHODS["sdedit"].Options)


def test_every_page_is_on_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)", index)}
    assert [str(page) for page in DOCS.rglob("*.md") if page.resolve() not in linked | {DOCS / "index.md"}] == []


def test_every_method_is_in_the_table_of_choices() -> None:
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", page, flags=re.MULTILINE)) == sorted(METHODS.names)
    assert not re.search(r"\d+(\.\d+)? ?%|\d\.\d", page)  # figures are on the pages that it links to


@pytest.mark.parametrize("table", TRUTH)
def test_the_numbers_of_the_page_on_truth_are_those_of_its_tables(table: str) -> None:
    figures = dict(zip(*read_csv(DOCS / "benchmarks" / table), strict=True))
    page = (DOCS / "truth.md").read_text(encoding="utf-8")
    block = page.partition(f"docs/benchmarks/{table}) -->")[2].partition("<!-- numbers")[0]
    heading, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.strip().splitlines())
    assert {row[0] for row in rows} == set(TRUTH[table])
    for label, *cells in rows:
        for column, cell in zip(heading[1:], cells, strict=True):
            value = figures[TRUTH[table][label]][COLUMNS[column]].value
            assert cell in ("", f"{value:.2f}", f"{100 * value:.0f} %"), (label, column, value)
