# SPDX-License-Identifier: Apache-2.0
"""The augmentation study compares what it says it compares; no weights are needed to see that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.brain.augmentation import ARMS, METHODS, Plan, Pool, Run, Subjects, run_arm, scores, summarize
from benchmarks.brain.augmentation_study import Condition, make_pool, resampled, study
from benchmarks.brain.rows import COMPARED

PLAN = Plan(count=8, updates=10, seeds=3, search_seeds=1, trials=2)
SIZE = (6, 6, 6)


def image(subject: int, label: int) -> Tensor:
    """Noise of a subject whose brightness is its own, with a corner that tells the class."""
    generator = torch.Generator().manual_seed(subject)
    volume = 0.3 * torch.randn(1, *SIZE, generator=generator) + torch.randn(1, generator=generator)
    volume[:, 2:4, 2:4, 2:4] += 1.5 if label else -1.5
    return volume


def pairs(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"image": image(k, k % 2), "image_true": image(k, 1 - k % 2), "label": torch.tensor(k % 2), "case": f"c{k}"}
        for k in range(first, first + count)
    ]


def subjects(count: int, first: int) -> Subjects:
    items = pairs(count, first)
    return Subjects(torch.stack([i["image"] for i in items]), torch.stack([i["label"] for i in items]))


def make_network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 2))


def perfect(images: Tensor, cases: list[str], target: Tensor) -> Tensor:
    number = [int(name.split("-")[0][1:]) for name in cases]
    return torch.stack([image(k, int(wanted)) for k, wanted in zip(number, target, strict=True)])


def unchanged(images: Tensor, cases: list[str], target: Tensor) -> Tensor:
    return images


@pytest.fixture(scope="module")
def sets() -> tuple[list[dict[str, Any]], Subjects, Subjects]:
    return pairs(16), subjects(20, 100), subjects(40, 200)


def arm(name: str, pool: Pool, sets, plan: Plan = PLAN) -> Run:
    return run_arm(ARMS[name], pool, sets[1], sets[2], make_network, plan)


def test_training_sets_are_balanced_repeatable_and_of_the_pool():
    pool = make_pool(pairs(16), unchanged, unchanged)
    first, again, other = pool.draw(8, 0), pool.draw(8, 0), pool.draw(8, 1)
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(set(first.tolist())) == 8
    assert int(pool.label[first].sum()) == 4


def test_counterfactuals_carry_the_other_label_and_reconstructions_their_own():
    pool = make_pool(pairs(16), perfect, perfect)
    chosen = np.array([2, 3])
    found = pool.subjects(("image", "counterfactual", "reconstruction", "truth", "difference"), chosen)
    assert found.label.tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 1, 0]
    assert torch.equal(found.image[2], image(2, 1))
    assert torch.equal(found.image[4], image(2, 0))


def test_the_control_of_the_resolution_is_smoother_and_has_its_own_label():
    pool = make_pool(pairs(16), perfect, perfect, {"ilvr_2_250": perfect})
    found = pool.subjects(("image", "resampled", "ilvr_2_250"), np.array([2]))
    assert found.label.tolist() == [0, 0, 1]
    assert torch.equal(found.image[2], image(2, 1))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8, 8)
    stripes = (torch.arange(8) % 2).float().expand(1, 1, 8, 8, 8)
    torch.testing.assert_close(resampled(ramp)[..., 1:-1], ramp[..., 1:-1])
    torch.testing.assert_close(resampled(stripes), torch.full_like(stripes, 0.5))


def test_every_method_of_the_paper_is_a_row_of_the_bundle_s_comparison():
    assert set(METHODS) <= {row.name for row in COMPARED}


def test_perfect_counterfactuals_are_worth_what_the_truth_is_worth(sets):
    pool = make_pool(sets[0], perfect, perfect)
    np.testing.assert_array_equal(arm("counterfactual", pool, sets).logits, arm("truth", pool, sets).logits)
    np.testing.assert_array_equal(arm("difference", pool, sets).logits, arm("truth", pool, sets).logits)


def test_a_generator_that_changes_nothing_is_the_control_itself(sets):
    pool = make_pool(sets[0], unchanged, unchanged)
    np.testing.assert_array_equal(arm("reconstruction", pool, sets).logits, arm("duplicates", pool, sets).logits)


def test_false_counterfactuals_hurt_and_the_table_says_so(sets):
    plan = replace(PLAN, updates=40)
    pool = make_pool(sets[0], unchanged, unchanged)
    runs = {name: arm(name, pool, sets, plan) for name in ("duplicates", "counterfactual", "truth")}
    rows = summarize(runs, sets[2].label.numpy())
    assert rows["duplicates"]["accuracy"].value > 0.75
    assert rows["counterfactual"]["accuracy"].value < 0.65
    assert rows["counterfactual"]["gain"].high < 0
    assert rows["counterfactual"]["gain_subjects"].high < 0
    assert rows["truth"]["accuracy"].value > rows["counterfactual"]["accuracy"].value


def test_the_test_subjects_choose_nothing(sets):
    pool = make_pool(sets[0], perfect, perfect)
    flipped = Subjects(-sets[2].image, 1 - sets[2].label)
    runs = [run_arm(ARMS["truth"], pool, sets[1], each, make_network, PLAN) for each in (sets[2], flipped)]
    assert runs[0].learning_rate == runs[1].learning_rate
    assert runs[0].learning_rate in PLAN.learning_rates()
    assert all(0.003 <= rate <= 0.1 for rate in Plan(trials=50).learning_rates())


def test_the_gain_is_a_paired_difference():
    rng = np.random.default_rng(0)
    label = np.arange(30) % 2
    runs = {name: Run(0.1, rng.standard_normal((5, 30)) + (label - 0.5)) for name in ("duplicates", "counterfactual")}
    rows = summarize(runs, label)
    found = {name: scores(run.logits, label)["accuracy"] for name, run in runs.items()}
    expected = stats.ttest_rel(found["counterfactual"], found["duplicates"]).confidence_interval(0.95)
    gain = rows["counterfactual"]["gain"]
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))
    assert "gain" not in rows["duplicates"]
    assert found["duplicates"][0] == pytest.approx(np.mean((runs["duplicates"].logits[0] > 0) == label))


def test_scores_are_those_of_the_definitions():
    label = np.array([0, 0, 0, 1])
    found = scores(np.array([[-1.0, -2.0, 3.0, 2.0]]), label)
    assert found["accuracy"][0] == pytest.approx(0.75)
    assert found["balanced"][0] == pytest.approx((2 / 3 + 1) / 2)
    assert found["auc"][0] == pytest.approx(2 / 3)


def test_the_study_degrades_every_set_alike_and_runs_all_arms(sets):
    seen = []

    def load(transform):
        seen.append(transform)
        return sets

    condition = Condition("few", 8, {"bias": 0.2, "motion": 0.0, "noise": 0.1})
    others = dict.fromkeys(METHODS, perfect)
    figures, test = study(condition, replace(PLAN, count=99), perfect, perfect, make_network, load, others=others)
    assert seen[0].noise == 0.1
    assert list(figures) == list(ARMS)
    assert test is sets[2]
    clean = Condition("clean", 8)
    study(clean, PLAN, perfect, perfect, make_network, load, ("duplicates",))
    assert seen[1] is None


def test_a_run_that_was_killed_goes_on(sets, tmp_path):
    condition, trained = Condition("few", 8), []

    def counted() -> nn.Module:
        trained.append(1)
        return make_network()

    first = study(condition, PLAN, perfect, perfect, counted, lambda transform: sets, ("duplicates",), tmp_path)[0]
    before = len(trained)
    again = study(
        condition, PLAN, perfect, perfect, counted, lambda transform: sets, ("duplicates", "truth"), tmp_path
    )[0]
    assert repr(again["duplicates"]) == repr(first["duplicates"])  # NaN does not equal itself
    assert len(trained) - before == before + 1  # only the new arm was trained; the network was looked at
    changed = replace(PLAN, updates=11)
    study(condition, changed, perfect, perfect, counted, lambda transform: sets, ("duplicates",), tmp_path)
    assert len(list(tmp_path.glob("duplicates-*"))) == 2  # another question, another answer
