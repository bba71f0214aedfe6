# SPDX-License-Identifier: Apache-2.0
"""The comparison of maps: what knows the truth leads, what knows nothing is at chance, and the files say how."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import localization
from benchmarks.localization import load_cases, open_bundle
from benchmarks.localization_maps import Cases, difference_maps, reference_maps, saliency_maps
from medcf.inferers import SeededExplanation


@pytest.fixture(scope="module")
def classifier() -> Any:
    return open_bundle("cpu").get_parsed_content("classifier").eval()


@pytest.fixture(scope="module")
def cases(classifier: Any) -> Cases:
    return load_cases("test", 2, classifier, 1, torch.device("cpu"))


def faked(cases: Cases, seeds: int = 3) -> SeededExplanation:
    """Counterfactuals that put the truth into the image, and noise common to them and the floor."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.randn(seeds, *cases.image.shape, generator=generator)
    return SeededExplanation(cases.truth + noise, cases.image + noise, [])


def test_maps_are_not_negative_and_the_floor_and_seeds_bring_them_nearer_to_the_truth(cases: Cases) -> None:
    maps = dict(difference_maps(cases, faked(cases)))
    assert all(bool((each >= 0).all()) and each.shape == cases.image.shape for each in maps.values())
    values = {
        name: {row["change"]: row["value"] for row in localization.score("", name, each, cases, False)[::3]}
        for name, each in maps.items()
    }
    perfect = dict(reference_maps(cases))["paired true image minus input (perfect counterfactual)"]
    best = {row["change"]: row["value"] for row in localization.score("", "", perfect, cases, False)[::3]}
    for kind in localization.KINDS:
        assert values["difference, 1 seed"][kind] < values["signed, 3 seeds"][kind]
        assert values["signed minus floor, 3 seeds"][kind] == pytest.approx(best[kind], abs=0.02)
    assert len(dict(difference_maps(cases, faked(cases, seeds=1)))) == 4


def test_saliency_maps_are_of_the_class_that_is_said_and_differ_between_cases(cases: Cases, classifier: Any) -> None:
    maps = dict(saliency_maps(cases, classifier))
    assert set(maps) == {"GradCAM, last block", "GradCAM, third block", "OcclusionSensitivity", "SmoothGrad"}
    for each in maps.values():
        assert each.shape == cases.image.shape
        assert bool((each >= 0).all())
        assert each.flatten(1).max(1).values.max() > 0
    occluded = maps["OcclusionSensitivity"]
    assert occluded.max() <= 1  # a drop of a probability
    with torch.no_grad():
        assert bool((classifier(cases.image).argmax(1) == 0).all())


def test_maps_without_information_are_at_chance(cases: Cases) -> None:
    maps = dict(reference_maps(cases))
    for row in localization.score("reference", "uniform", maps["uniform (chance)"], cases, True):
        assert row["value"] == pytest.approx(row["chance"])
    for row in localization.score("reference", "random", maps["random"], cases, False):
        if row["metric"] == "AUPRC":
            assert row["value"] == pytest.approx(row["chance"], abs=0.05)
    perfect = localization.score("", "", maps["paired true image minus input (perfect counterfactual)"], cases, False)
    assert all(row["value"] > 1.3 * row["chance"] for row in perfect if row["metric"] != "pointing game")


def test_the_command_writes_both_files_and_says_how_they_were_made(
    cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def saliency(cases: Cases, classifier: Any) -> Iterator[tuple[str, Tensor]]:
        yield "GradCAM", cases.image.abs()

    def explain(parser: Any, found: Cases, seeds: Any, options: Any) -> SeededExplanation:
        assert (list(seeds), options.batch_size, options.floor) == ([5, 6], 8, "source")
        return faked(cases, 2)

    monkeypatch.setattr(localization, "load_cases", lambda *args: cases)
    monkeypatch.setattr(localization, "saliency_maps", saliency)
    monkeypatch.setattr(localization, "explain", explain)
    out = tmp_path / "tables" / "localization"
    assert localization.main(["--count", "3", "--seeds", "2", "--seed", "5", "--device", "cpu", "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text()
    assert text == capsys.readouterr().out
    assert "--count 3 --split test --seeds 2 --seed 5" in text
    assert "Diff-ICE: signed minus floor, 2 seeds" in text
    assert "saliency: GradCAM" in text
    with out.with_suffix(".csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["map"] for row in rows}) * 6 == len(rows)
    known = [row for row in rows if row["low"] != "nan"]  # two heads are too few for an interval, except of shares
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in known)
    assert 0 < len(known) < len(rows)
    with pytest.raises(SystemExit):
        localization.main(["--count", "0"])
