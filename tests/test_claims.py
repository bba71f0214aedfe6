# SPDX-License-Identifier: Apache-2.0
"""The README holds no figure that no committed table or page has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.claims import ROOT, claims, page, uncovered

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_figure_of_the_readmes_tables_is_that_of_its_csv() -> None:
    found = claims(README)
    assert {claim.source.csv for claim in found} == {"controlcg_methods.csv", "phantoms_methods.csv"}
    assert [(claim.where, claim.shown, claim.figure.value) for claim in found if not claim.agrees] == []


def test_every_other_number_of_the_readme_is_on_its_page() -> None:
    assert uncovered(README) == []


def test_the_page_of_claims_is_up_to_date() -> None:
    written = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert written == page(README), "run python -m benchmarks.claims"


def test_a_changed_figure_is_noticed() -> None:
    first = claims(README)[0]
    row = next(line for line in README.splitlines() if line.startswith(f"| {first.where[0]} |"))
    changed = README.replace(row, row.replace(first.shown, "41 %", 1))
    assert [claim.shown for claim in claims(changed) if not claim.agrees] == ["41 %"]


@pytest.mark.parametrize("sentence", ["It flips 73 % of them.", "An image takes 0.3 s.", "It ran on 5000 images."])
def test_a_number_in_a_sentence_without_a_source_is_noticed(sentence: str) -> None:
    assert uncovered(f"{README}\n{sentence}\n") == [sentence]


def test_another_number_in_a_known_sentence_is_noticed() -> None:
    heads = re.search(r"the same (\d+) heads", README)
    assert heads
    assert len(uncovered(README.replace(heads[0], "the same 65 heads"))) == 1


@pytest.mark.parametrize("excluded", ["Python 3.12 or later", "`--count 64`", "in 3D", "[page](docs/2026-11.md)", "x̂0"])
def test_code_versions_and_links_are_no_figures(excluded: str) -> None:
    assert uncovered(f"{README}\n{excluded}\n") == []


def test_a_table_that_nobody_traced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no source in benchmarks/claims\.py has the columns"):
        claims(f"{README}\n| method | speed |\n| --- | --- |\n| new | 3 |\n")
    with pytest.raises(ValueError, match="the row 'new' has no source"):
        claims("| a | flips f |\n| --- | --- |\n| new | 3 % |\n")


def test_the_pages_it_names_exist() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")):
        assert (Path(ROOT) / "docs" / link).is_file()
