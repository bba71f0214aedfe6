# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks.counterfactual.figure import draw_features
from benchmarks.counterfactual.measure import MEASURES, measure
from benchmarks.counterfactual.phantoms import phantom_task
from benchmarks.counterfactual.rows import Row
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.studies import quality_against_input
from benchmarks.counterfactual.tables import markdown

COUNT = 5


@pytest.fixture(scope="module")
def task():
    return phantom_task(split="val", count=COUNT, references=40, progress=False)


def result_of(task, image, flipped):
    return Result(
        image=image,
        trajectory=torch.stack([task.cases.image, image], dim=1),
        confidences=torch.zeros(COUNT, 2),
        flipped=torch.full((COUNT,), flipped),
        unchanged=torch.zeros(COUNT, dtype=torch.bool),
        evaluations=torch.zeros(COUNT, dtype=torch.long),
        seconds=1.0,
        peak_mib=0.0,
    )


def test_doing_nothing_comes_out_as_doing_nothing(task):
    figures = measure(task, result_of(task, task.cases.image, False))
    assert figures["flips"].value == 0
    assert figures["fd_inputs"].value == pytest.approx(0, abs=1e-6)
    assert figures["ssim"].value == pytest.approx(1)
    assert figures["truth_ratio"].value == pytest.approx(1)
    assert figures["quality"].value == pytest.approx(0, abs=1e-6)
    assert figures["fd_main"].value > 10
    assert set(figures) <= {entry.key for entry in MEASURES}


def test_the_paired_truth_is_the_best_there_is_and_another_subjects_truth_loses_the_identity(task):
    truth = task.cases.truth["image"]
    own = measure(task, result_of(task, truth, True))
    others = measure(task, result_of(task, truth.roll(1, dims=0), True))
    assert own["flips"].value == others["flips"].value == 1
    assert own["confirmed"].value == others["confirmed"].value == 1
    assert own["truth_ratio"].value == 0
    assert own["fd_main"].value < 5
    assert own["rank_main"].value == 1
    assert own["invented"].value == own["lost"].value == 0
    assert abs(own["lost_identity"].value) < 0.01
    assert others["lost_identity"].value > 0.4
    assert others["truth_ratio"].value > 0.8
    assert others["hc_error"].value > own["hc_error"].value + 3


def test_published_features_measure_realism_and_without_weights_the_column_says_so(task, tmp_path):
    pixels = replace(task, published={"inception": lambda images: images.flatten(1)[:, ::64]})
    truth = result_of(pixels, task.cases.truth["image"], True)
    rows = [measure(pixels, truth), measure(pixels, result_of(pixels, -task.cases.image, False))]
    assert 0 < rows[0]["fd_inception"].value < rows[1]["fd_inception"].value / 2
    assert rows[0]["kd_inception"].value < rows[1]["kd_inception"].value
    table = next(part for part in markdown(["a", "b"], rows, MEASURES).split("\n\n") if "FID" in part).splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (table[0], table[2])), strict=True))
    assert cells["FID to real target images ↓"].startswith(f"{rows[0]['fd_inception'].value:.1f}")
    assert cells["FD(RadImageNet) to real target images ↓"] == "no weights (`--radimagenet FILE`)"
    draw_features(tmp_path / "features.png", pixels, ["truth"], [truth])
    assert Image.open(tmp_path / "features.png").size[0] > 100


def test_the_gain_of_quality_is_averaged_over_inputs_of_like_quality(task):
    text, scores = quality_against_input(task, result_of(task, task.cases.truth["image"], True), bins=2)
    before, after = scores["quality"]
    assert (after > 0.75).all()
    low = before < 0.5
    assert f"{(after - before)[low].mean():+.2f} ({int(low.sum())})" in text  # four give no interval
    assert "nan" not in text
    assert len(text.splitlines()) == 6


def test_mqd_counts_the_inputs_that_the_oracle_itself_calls_poor(task):
    figures = measure(task, result_of(task, task.cases.truth["image"], True))
    before, after = (task.oracle_scores(each)[:, -1] for each in (task.cases.image, task.cases.truth["image"]))
    assert task.judge_threshold == 0.75
    assert ((before > 0.5) & (before < 0.75)).any()  # which the paper's threshold would leave out
    expected = torch.where(before < 0.75, after - before, 0).mean()
    assert figures["mqd"].value == pytest.approx(float(expected), abs=1e-6)


def test_a_changed_network_is_another_question(task, tmp_path):
    other = tmp_path / "model.pt"
    other.write_bytes(b"other weights")
    changed = replace(task.recipe, overrides={"weights#model": str(other)})
    assert changed.digest() != task.recipe.digest()
    assert replace(task.recipe).digest() == task.recipe.digest()


def test_a_result_is_stored_and_used_again_until_the_question_changes(task, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    cases = task.cases.where(torch.arange(COUNT) < 2)
    row = Row("unchanged", "unchanged", {"method": "unchanged"}, control=True)
    first = obtain(row, task.recipe, cases, Setup(), tmp_path)
    assert torch.equal(first.image, cases.image)
    assert first.evaluations.sum() == 0
    stored = list(tmp_path.glob("unchanged-*.pt"))
    assert len(stored) == 1
    written = stored[0].stat().st_mtime_ns
    obtain(row, task.recipe, cases, Setup(), tmp_path)
    assert stored[0].stat().st_mtime_ns == written
    with pytest.raises(RuntimeError, match="no method failed"):
        obtain(
            replace(row, name="x", label="no method", overrides={"method": "nothing"}),
            task.recipe,
            cases,
            Setup(),
            tmp_path,
        )
