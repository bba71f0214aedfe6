# SPDX-License-Identifier: Apache-2.0
"""The controls of the benchmark: what they come out as, and that the columns tell them from a method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.counterfactual.axiom_study import axiom_rows
from benchmarks.counterfactual.ceiling import train
from benchmarks.counterfactual.controls import best_blur, edited
from benchmarks.counterfactual.measure import measure
from benchmarks.counterfactual.phantoms import phantom_pairs, phantom_task
from benchmarks.counterfactual.rows import FEW_STEPS, MATCHED, Row, expected
from benchmarks.counterfactual.run import Result, Setup, mean_of, obtain
from benchmarks.counterfactual.studies import uncomputed
from benchmarks.counterfactual.task import Recipe
from medcf.metrics import RelativeTruthError
from medcf.metrics.truth import blurred

COUNT = 6


@pytest.fixture(scope="module")
def task():
    return phantom_task(split="val", count=COUNT, references=8, progress=False)


def figures_of(task, images, **further):
    return measure(task, uncomputed(task.cases, images), **further)


def test_edits_of_a_place_are_perfect_there_and_leave_the_rest(task):
    image, truth = task.cases.image, task.cases.truth
    head = figures_of(task, edited(image, truth["image"], truth["organ"]))
    structures = figures_of(task, edited(image, truth["image"], truth["structure"]))
    assert head["truth_organ"].value < 0.02  # only the blur across the edge remains
    assert structures["truth_changed"].value < 0.1
    assert head["truth_ratio"].value < structures["truth_ratio"].value < 1
    assert head["cavum_side"].value == 1
    assert head["cavum_side"].count == int(task.cases.truth["side_shown"].sum()) > 0


def test_blur_lowers_the_error_without_an_answer_and_sharpness_shows_it(task):
    image = task.cases.image
    pairs = phantom_pairs(task.recipe, "train", 8, progress=False)
    sigma = best_blur(*pairs)
    ratios = {}
    for other in (0.3, sigma, 2.8):
        metric = RelativeTruthError()
        metric(blurred(pairs[0], other), pairs[1], image=pairs[0])
        ratios[other] = metric.aggregate()
    assert ratios[sigma] == min(ratios.values()) < 1
    found = figures_of(task, blurred(image, sigma))
    assert found["truth_ratio"].value < 1
    assert found["sharpness"].value < 0.6
    assert found["flips"].value == 0


def test_other_speckle_is_the_same_head_and_not_the_same_pixels(task):
    truth = task.cases.truth
    found = figures_of(task, truth["other_speckle"])
    assert 0 < found["truth_ratio"].value < 0.12
    assert found["effectiveness"].value == pytest.approx(1, abs=0.05)
    assert found["sharpness"].value == pytest.approx(1, abs=0.15)
    assert found["flips"].value == 1


def test_a_mirrored_truth_has_the_cavum_on_the_wrong_side(task):
    found = figures_of(task, task.cases.truth["image"].flip(-1))
    assert found["cavum_side"].value < 0.5


def test_what_regeneration_does_is_subtracted_from_the_effectiveness(task):
    image, truth = task.cases.image, task.cases.truth["image"]
    own = uncomputed(task.cases, image + 0.25 * (truth - image))
    found = figures_of(task, image + 0.75 * (truth - image), own=own)
    assert found["effectiveness"].value == pytest.approx(0.75, abs=1e-4)
    assert found["class_effectiveness"].value == pytest.approx(0.5, abs=1e-4)
    assert found["truth_ratio"].value == pytest.approx(0.25**2, abs=1e-4)
    assert "class_effectiveness" not in figures_of(task, image)


def test_the_regression_learns_from_pairs_and_its_seed_decides():
    before = torch.rand(32, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    after = before.clone()
    after[..., 8:24, 8:24] += 0.4  # in every image
    networks = [train(before, after, steps=40, seed=seed) for seed in (0, 0, 1)]
    with torch.no_grad():
        changes = [network(before) for network in networks]
    assert torch.equal(changes[0], changes[1])
    assert not torch.equal(changes[0], changes[2])
    assert (before + changes[0] - after).square().mean() < 0.5 * (before - after).square().mean()


def test_the_mean_over_seeds_is_judged_as_an_image_of_its_own():
    def result(level):
        made, ones = torch.full((2, 1, 4, 4), level), torch.ones(2)
        flipped = {"flipped": ones > 0, "unchanged": ones < 0}
        return Result(made, made[:, None], ones[:, None], **flipped, evaluations=3 * ones, seconds=2.0, peak_mib=level)

    def classifier(images):
        level = images.mean((1, 2, 3)) - 0.5
        return torch.stack([-level, level], 1)

    mean = mean_of([result(1.0), result(-0.5)], torch.ones(2), classifier)
    assert torch.equal(mean.image, torch.full((2, 1, 4, 4), 0.25))
    assert mean.evaluations.tolist() == [6, 6]
    assert (mean.seconds, mean.peak_mib) == (4.0, 1.0)
    assert not mean.flipped.any()  # though one of the seeds flipped


def test_a_row_of_several_seeds_is_another_question_and_runs(task, tmp_path):
    cases = task.cases.where(torch.arange(COUNT) < 2)
    quick = {"method": "sdedit", "shared_options#num_inference_steps": 4, "method_options#sdedit#strength": 0.5}
    row = Row("sdedit", "SDEdit", quick)
    recipe = Recipe(task.recipe.bundle, task.recipe.configs)
    one = [obtain(row, recipe, cases, replace(Setup(), seed=seed), tmp_path).image for seed in (0, 1)]
    both = obtain(expected(row, 2), recipe, cases, Setup(), tmp_path)
    torch.testing.assert_close(both.image, torch.stack(one).mean(0))
    assert not torch.equal(one[0], one[1])


@pytest.mark.long
def test_doing_nothing_satisfies_the_axioms_and_flips_nothing(task, tmp_path):
    small = replace(task, cases=task.cases.where(torch.arange(COUNT) < 2))
    labels, (found,) = axiom_rows(small, Setup(), tmp_path, ["unchanged"])
    assert labels == ["control: unchanged input"]
    assert {"composition_1", "composition_10", "reversibility_1", "reversibility_5", "other_factors"} < set(found)
    assert all(each.value == 0 for name, each in found.items() if name != "regenerated")
    assert found["minimality"].count == 2


def test_stored_results_know_the_content_of_a_rows_own_weights(tmp_path):
    recipe, file = Recipe("diffice", ("inference.json",)), tmp_path / "model.pt"
    digests = [recipe.digest({"weights#model": str(file)})]
    for content in (b"first", b"second"):
        file.write_bytes(content)
        digests.append(recipe.digest({"weights#model": str(file)}))
    assert len({recipe.digest(), *digests}) == 4
    assert recipe.digest({"method": "sdedit"}) == recipe.digest()


def test_few_steps_end_with_the_network_trained_on_them():
    rows = {row.name: row for row in FEW_STEPS}
    assert rows["sdedit_30"].overrides == {"method": "sdedit", "shared_options#num_inference_steps": 30}
    assert rows["sdedit_10_matched"].overrides == rows["sdedit_10"].overrides | {"weights#model": MATCHED}
