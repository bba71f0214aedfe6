# SPDX-License-Identifier: Apache-2.0
"""A training that stops and goes on: state, randomness, weights."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import RandGaussianNoise
from torch import nn

from medcf.runtime.weights import class_names
from medcf.training.sampler import ReproducibleRandomness
from medcf.training.state import (
    ExportWeights,
    ResumableCheckpoint,
    _change_settings,
    _settings,
    save_atomically,
)


def training(directory, network, **options):
    """A trainer that adds a random number to the weight in every iteration, and its checkpoint."""
    seen = []

    def step(engine, _batch):
        number = torch.randn(1)
        seen.append(float(number))
        with torch.no_grad():
            network.weight += number

    engine = Engine(step)
    ReproducibleRandomness(seed=3).attach(engine)
    checkpoint = ResumableCheckpoint(directory, {"network": network}, **options)
    checkpoint.attach(engine)
    return engine, seen


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole, parts = nn.Linear(1, 1), nn.Linear(1, 1)
    parts.load_state_dict(whole.state_dict())
    engine, expected = training(tmp_path / "a", whole)
    engine.run([0] * 3, max_epochs=4)
    engine, first = training(tmp_path / "b", parts)
    engine.run([0] * 3, max_epochs=2)
    torch.manual_seed(99)  # a new process begins with another state
    again = nn.Linear(1, 1)
    engine, second = training(tmp_path / "b", again)
    engine.run([0] * 3, max_epochs=4)
    assert first + second == expected
    assert torch.equal(again.weight, whole.weight)


def test_the_same_command_after_the_end_changes_nothing(tmp_path):
    network = nn.Linear(1, 1)
    training(tmp_path, network)[0].run([0] * 3, max_epochs=2)
    engine, seen = training(tmp_path, network)
    engine.run([0] * 3, max_epochs=2)
    assert seen == []


def test_resume_false_begins_anew(tmp_path):
    network = nn.Linear(1, 1)
    training(tmp_path, network)[0].run([0] * 3, max_epochs=2)
    engine, seen = training(tmp_path, network, resume=False)
    engine.run([0] * 3, max_epochs=2)
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("network", "length", "epochs", "message"),
    [
        (nn.Linear(2, 1), 3, 4, "another network"),
        (nn.Linear(1, 1), 4, 4, "another training"),
        (nn.Linear(1, 1), 3, 1, "beyond the 3 asked for"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, network, length, epochs, message):
    training(tmp_path, nn.Linear(1, 1))[0].run([0] * 3, max_epochs=2)
    with pytest.raises(ValueError, match=message) as error:
        training(tmp_path, network)[0].run([0] * length, max_epochs=epochs)
    assert "--resume False" in str(error.value)


def descent(directory, epochs, *, learning_rate=0.1, weight_decay=0.0, total=40):
    """Train by momentum on a cosine schedule, from a checkpoint on where there is one; return each iteration's rate."""
    network = nn.Linear(1, 1)
    options = {"lr": learning_rate, "momentum": 0.9, "weight_decay": weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), **options)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=4, t_total=total)
    rates = []

    def step(engine, _batch):
        optimizer.zero_grad()
        network(torch.ones(1, 1)).square().sum().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    engine = Engine(step)
    state = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    asked = {"learning_rate": learning_rate, "optimizer": {"weight_decay": weight_decay}}
    ResumableCheckpoint(directory, state, options=asked).attach(engine)
    engine.run([0] * 10, max_epochs=epochs)
    return rates, optimizer


def test_a_lower_learning_rate_lowers_the_rest_of_the_schedule(tmp_path, caplog):
    whole, _ = descent(tmp_path / "whole", 4)
    descent(tmp_path / "part", 2)
    lowered, optimizer = descent(tmp_path / "part", 4, learning_rate=0.01, weight_decay=0.5)
    assert lowered == pytest.approx([rate / 10 for rate in whole[20:]])
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert "options that differ from those at the start: learning_rate was 0.1, is 0.01; " in caplog.text
    assert "optimizer#weight_decay was 0.0, is 0.5" in caplog.text
    caplog.clear()
    assert descent(tmp_path / "part", 4, learning_rate=0.01, weight_decay=0.5)[0] == []
    assert "options that differ" not in caplog.text


def test_a_longer_training_goes_on_along_the_longer_schedule(tmp_path):
    longer, _ = descent(tmp_path / "longer", 4, total=80)
    descent(tmp_path / "part", 2, total=20)
    assert descent(tmp_path / "part", 4, total=80)[0] == pytest.approx(longer[20:])


def test_a_rate_without_a_closed_form_is_lowered_where_it_is():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.01)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    asked = _settings(optimizer)
    optimizer.param_groups[0].update(lr=0.025, initial_lr=0.1)  # as a checkpoint brings it: two halvings of 0.1
    _change_settings(optimizer, asked)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_the_momentum_of_a_resumed_training_stays(tmp_path):
    _, before = descent(tmp_path, 2)
    _, after = descent(tmp_path, 2, learning_rate=0.01)
    momenta = [next(iter(each.state.values()))["momentum_buffer"] for each in (before, after)]
    assert torch.equal(*momenta)


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"network_def": {"channels": [8, 32]}}, r"network_def#channels was \[8, 16\], is \[8, 32\]"),
        ({"spatial_size": [64, 64]}, r"spatial_size was \[32, 32\], is \[64, 64\]"),
        ({"segmentation_guided": False}, "segmentation_guided was true, is false"),
    ],
)
def test_options_that_make_another_model_are_refused_by_name(tmp_path, now, named):
    begun = {
        "network_def": {"channels": [8, 16]},
        "spatial_size": [32, 32],
        "segmentation_guided": True,
        "output_dir": 1,
    }
    training(tmp_path, nn.Linear(1, 1), options=begun)[0].run([0] * 3, max_epochs=1)
    with pytest.raises(ValueError, match=named) as error:
        training(tmp_path, nn.Linear(1, 1), options={**begun, **now})[0].run([0] * 3, max_epochs=2)
    assert "--resume False" in str(error.value)
    training(tmp_path, nn.Linear(1, 1), options={**begun, "output_dir": 2})[0].run([0] * 3, max_epochs=2)


def test_another_gate_is_no_change_of_the_training(tmp_path, caplog):
    begun = {"learning_rate": 1, "gate": {"aims": [0.9]}, "run": ["a"]}
    training(tmp_path, nn.Linear(1, 1), options=begun)[0].run([0] * 3, max_epochs=1)
    asked = {**begun, "gate": {"aims": [0.5]}, "gate_classifiers": {"f": 1}, "check_gate": ["b"]}
    training(tmp_path, nn.Linear(1, 1), options=asked)[0].run([0] * 3, max_epochs=2)
    assert "differ from those at the start" not in caplog.text
    training(tmp_path, nn.Linear(1, 1), options={**asked, "learning_rate": 2})[0].run([0] * 3, max_epochs=3)
    assert "differ from those at the start: learning_rate was 1, is 2." in caplog.text


def test_other_images_are_refused(tmp_path):
    options = {"options": {"learning_rate": 1}}
    training(tmp_path, nn.Linear(1, 1), images="one", **options)[0].run([0] * 3, max_epochs=1)
    with pytest.raises(ValueError, match="other data, and cannot be resumed: the images or their labels"):
        training(tmp_path, nn.Linear(1, 1), images="two", **options)[0].run([0] * 3, max_epochs=2)


def test_a_damaged_checkpoint_names_the_file_to_delete(tmp_path):
    training(tmp_path, nn.Linear(1, 1))[0].run([0] * 3, max_epochs=1)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*Delete it and start the same command again"):
        training(tmp_path, nn.Linear(1, 1))[0].run([0] * 3, max_epochs=2)
    file.unlink()
    engine, seen = training(tmp_path, nn.Linear(1, 1))
    engine.run([0] * 3, max_epochs=2)
    assert len(seen) == 6


def test_classes_are_kept_beside_the_weights_and_no_others_go_there(tmp_path):
    ExportWeights(nn.Linear(1, 1), tmp_path / "classifier.pt", class_names=["normal", "pneumonia"])
    assert class_names(tmp_path, ["NSP", "SP"]) == ["normal", "pneumonia"]
    ExportWeights(nn.Linear(1, 1), tmp_path / "model.pt", class_names=["normal", "pneumonia"])
    with pytest.raises(
        ValueError, match=r"holds weights for the classes normal, pneumonia, not dog, cat.*--models_dir"
    ):
        ExportWeights(nn.Linear(1, 1), tmp_path / "model.pt", class_names=["dog", "cat"])
    assert class_names(tmp_path / "empty", ["NSP", "SP"]) == ["NSP", "SP"]


def test_random_transforms_are_seeded_by_the_epoch():
    class Images:
        transform = RandGaussianNoise(prob=1.0)

    def draws(epochs):
        result = []
        images = Images()
        engine = Engine(lambda engine, _: result.append(images.transform(torch.zeros(4)).tolist()))
        ReproducibleRandomness(0, images).attach(engine)
        engine.run([0], max_epochs=epochs)
        return result

    assert draws(3)[:2] == draws(2)
    assert draws(2)[0] != draws(2)[1]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = save_atomically({"a": torch.ones(1)}, tmp_path / "sub" / "state.pt")
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"a": lambda: None}, path)
    assert torch.load(path, weights_only=True)["a"] == 1


def test_exported_weights_are_a_plain_state_dict_of_the_end(tmp_path):
    network = nn.Linear(1, 1)
    engine, _ = training(tmp_path, network)
    ExportWeights(network, tmp_path / "models" / "weights.pt").attach(engine)
    engine.run([0] * 3, max_epochs=2)
    torch.testing.assert_close(torch.load(tmp_path / "models" / "weights.pt", weights_only=True), network.state_dict())


def test_the_checkpoint_stands_until_the_next_one_does(tmp_path, monkeypatch):
    engine, _ = training(tmp_path, nn.Linear(1, 1))
    engine.run([0] * 3, max_epochs=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, nn.Linear(1, 1))[0].run([0] * 3, max_epochs=2)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
