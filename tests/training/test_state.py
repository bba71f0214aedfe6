# SPDX-License-Identifier: Apache-2.0
"""A training that stops and goes on: state, randomness, weights."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.transforms import RandGaussianNoise
from torch import nn

from medcf.training.state import ExportWeights, ReproducibleRandomness, ResumableCheckpoint, save_atomically


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


def test_a_checkpoint_that_is_cut_off_says_what_to_do(tmp_path):
    training(tmp_path, nn.Linear(1, 1))[0].run([0] * 3, max_epochs=2)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"not a readable checkpoint.*--resume False") as error:
        training(tmp_path, nn.Linear(1, 1))[0].run([0] * 3, max_epochs=4)
    assert error.value.__suppress_context__  # torch's text says how to execute what is in a file


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
