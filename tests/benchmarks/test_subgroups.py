# SPDX-License-Identifier: Apache-2.0
"""Subgroups of heads and brains: who is in them, and that a difference between them is found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.brain.subgroups import brain_groups
from benchmarks.counterfactual import subgroups
from benchmarks.counterfactual.phantoms import phantom_task
from benchmarks.counterfactual.run import Setup
from benchmarks.counterfactual.studies import uncomputed
from benchmarks.counterfactual.subgroups import SUBGROUPS, head_groups, quantile_groups, subgroup_rows
from benchmarks.counterfactual.task import Cases
from medcf.phantoms import BrainMRI, FetalHead

COUNT = 6


@pytest.fixture(scope="module")
def task():
    return phantom_task(split="val", count=COUNT, references=8, progress=False)


def test_quantiles_divide_the_cases_once_and_in_order():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 6.0, 3.0, 7.0])
    groups = quantile_groups("age", values, "years")
    assert torch.stack([group.cases for group in groups]).sum(0).eq(1).all()
    assert [sorted(values[group.cases].tolist()) for group in groups] == [[1, 2, 3], [4, 5], [6, 7]]
    assert groups[0].label == "age 1 to 3 years"


def test_equal_values_are_not_divided():
    (group,) = quantile_groups("gain", torch.full((4,), 2.0), "dB")
    assert group.cases.all()


def test_heads_are_divided_by_what_they_are(task):
    groups = head_groups(task.cases.subject)
    size = [FetalHead(int(each)).anatomy.bpd for each in task.cases.subject]
    largest = next(group for group in reversed(groups) if group.label.startswith("BPD"))
    assert largest.cases.nonzero()[:, 0].tolist() == sorted(sorted(range(COUNT), key=lambda k: size[k])[-2:])
    assert len(groups) == 9


def test_a_method_that_works_on_large_heads_alone_is_found(task, tmp_path, monkeypatch):
    sizes = [group for group in head_groups(task.cases.subject) if group.label.startswith("BPD")]
    image, truth = task.cases.image, task.cases.truth["image"]
    made = truth.where(sizes[2].cases[:, None, None, None], image)
    asked = []

    def obtain(row, *_):
        asked.append(row.name)
        return uncomputed(task.cases, made)

    monkeypatch.setattr(subgroups, "obtain", obtain)
    labels, figures = subgroup_rows(task, Setup(), tmp_path)
    assert asked == ["diffice"]  # once for all groups
    found = dict(zip(labels, figures, strict=True))
    assert set(found["all (6 heads)"]) == {each.key for each in SUBGROUPS}
    for group, works in zip(sizes, (False, False, True), strict=True):
        row = found[f"{group.label} (2 heads)"]
        assert row["flips"].value == row["confirmed"].value == works
        assert row["truth_ratio"].value == pytest.approx(1 - works)
        assert row["truth_organ"].value == pytest.approx(1 - works)
        assert row["flips"].count == 2
    assert found["all (6 heads)"]["flips"].value == pytest.approx(1 / 3)


def test_brains_are_divided_by_severity_within_their_class_and_by_age():
    label = torch.tensor([0, 1, 0, 1])
    subjects = ["3", "1", "4", "2"]
    truth = {"severity": torch.tensor([0.1, 0.9, 0.2, 0.7])}
    cases = Cases(torch.zeros(4, 1), ["a", "b", "c", "d"], subjects, truth)
    groups = brain_groups(SimpleNamespace(label=label, cases=cases))
    chosen = {group.label: group.cases.nonzero()[:, 0].tolist() for group in groups}
    assert list(chosen.values())[:4] == [[0], [2], [3], [1]]
    assert next(iter(chosen)).startswith("CN to AD, severity 0.1")
    oldest = max(range(4), key=lambda k: BrainMRI(int(subjects[k])).age)
    assert oldest in list(chosen.values())[-1]
