# SPDX-License-Identifier: Apache-2.0
"""What a batch becomes: labels dropped at their rate, time steps by their law."""

from __future__ import annotations

import pytest
import torch

from medcf.schedulers import RespacedDDPMScheduler, kept_timesteps
from medcf.training.prepare_batch import ClassConditionalPrepareBatch, PairPrepareBatch, TargetPrepareBatch


def prepare_batch(timesteps=1000, *, prediction_type="epsilon", **options):
    return ClassConditionalPrepareBatch(RespacedDDPMScheduler(timesteps, prediction_type=prediction_type), **options)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_labels_are_replaced_by_the_null_class_at_the_rate_asked_for(dropout):
    torch.manual_seed(0)
    labels = prepare_batch(dropout=dropout).get_class_labels(torch.ones(20000, dtype=torch.long))
    assert float((labels == 2).float().mean()) == pytest.approx(dropout, abs=0.02)
    assert set(labels.tolist()) <= {1, 2}


def test_an_unknown_class_stays_the_null_class():
    labels = torch.tensor([0, 1, 2])
    assert prepare_batch(dropout=0.0).get_class_labels(labels).tolist() == [0, 1, 2]
    batch = {"image": torch.zeros(3, 1, 4, 4), "label": labels}
    *_, arguments = prepare_batch(dropout=0.9)(batch, "cpu")
    assert arguments["class_labels"][2] == 2


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
def test_time_steps_follow_the_power_law(power):
    torch.manual_seed(0)
    steps = prepare_batch(timestep_power=power).get_timesteps(torch.zeros(40000, 1))
    assert steps.min() >= 0
    assert steps.max() <= 999
    for quantile in (0.1, 0.5, 0.9):
        expected = 1000 * quantile**power
        assert float(steps.double().quantile(quantile)) == pytest.approx(expected, abs=0.01 * 1000)


def test_each_batch_covers_the_whole_range_of_time_steps():
    steps = prepare_batch().get_timesteps(torch.zeros(20, 1)).sort().values
    assert ((steps >= torch.arange(0, 1000, 50)) & (steps < torch.arange(50, 1001, 50))).all()


def test_matched_steps_are_those_that_the_sampler_visits():
    steps = prepare_batch(matched_steps=10).get_timesteps(torch.zeros(1000, 1))
    assert steps.unique().tolist() == kept_timesteps(1000, 10)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_target_is_what_the_scheduler_reads(kind):
    torch.manual_seed(0)
    prepare = prepare_batch(prediction_type=kind)
    batch = {"image": torch.randn(3, 1, 4, 4), "label": torch.zeros(3)}
    images, target, _, arguments = prepare(batch, "cpu")
    for i, t in enumerate(arguments["timesteps"].tolist()):
        noisy = prepare.scheduler.add_noise(images[i : i + 1], arguments["noise"][i : i + 1], t)
        prediction = prepare.scheduler.convert(target[i : i + 1], t, noisy)
        torch.testing.assert_close(
            prediction.velocity,
            prepare.scheduler.get_velocity(images, arguments["noise"], t)[i : i + 1],
            atol=1e-3,
            rtol=1e-3,
        )


def test_the_target_is_the_noise_that_the_network_is_given():
    batch = {"image": torch.zeros(3, 1, 4, 4), "label": torch.zeros(3, dtype=torch.int32)}
    images, target, args, arguments = prepare_batch(10)(batch, "cpu")
    assert torch.equal(images, batch["image"])
    assert torch.equal(target, arguments["noise"])
    assert args == ()
    assert arguments["class_labels"].dtype == torch.long
    assert arguments["timesteps"].shape == (3,)


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"dropout is 1\.5"):
        prepare_batch(dropout=1.5)


def test_several_targets_come_as_a_dictionary():
    batch = {"image": torch.zeros(2, 1), "label": torch.tensor([0, 1]), "quality": torch.tensor([0.1, 0.2])}
    image, label = TargetPrepareBatch("label")(batch, "cpu")
    assert label.tolist() == [0, 1]
    _, targets = TargetPrepareBatch(["label", "quality"])(batch, "cpu")
    assert targets.keys() == {"label", "quality"}
    assert image is batch["image"]


def test_a_batch_holds_first_images_then_second_ones():
    batch = {"image": torch.zeros(2, 1, 4, 4), "image_pair": torch.ones(2, 1, 4, 4)}
    batch["parameters"] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    images, target = PairPrepareBatch()(batch)
    assert images.flatten(1).mean(1).tolist() == [0, 0, 1, 1]
    assert target.tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
