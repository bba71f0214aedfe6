# SPDX-License-Identifier: Apache-2.0
"""Regimes: what is trained on what, in which order, for equally many steps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.networks.nets import DenseNet
from torch import nn

from medcf.data import StoreWriter, SyntheticStore
from medcf.networks import SonoNet
from medcf.networks.classifiers import CLASSIFIERS, create_classifier, last_layer
from medcf.training.regimes import (
    REGIMES,
    SourcedDataset,
    Stage,
    StageHandler,
    iterations_of,
    regime_sampler,
)

REAL, MADE, AGAIN = 0.25, 0.5, 0.75


def again(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "image": torch.full_like(item["image"], AGAIN)}


@pytest.fixture
def dataset(tmp_path: Path) -> SourcedDataset:
    """Return 4 real, 6 augmented and 6 synthetic images, to be told by their gray value."""
    rows = [{"label": index % 2} for index in range(6)]
    with_store = StoreWriter(tmp_path, rows, shape=(1, 4, 4), dtype="float16")
    with_store.open()
    with_store.write(0, torch.full((6, 1, 4, 4), MADE))
    with_store.close()
    real = [{"image": torch.full((1, 4, 4), REAL), "label": torch.tensor(i % 2), "case": f"{i}"} for i in range(4)]
    return SourcedDataset(real, SyntheticStore(tmp_path), again)


def shades(dataset: SourcedDataset, regime: str, iterations: int = 12) -> list[float]:
    sampler = regime_sampler(dataset, REGIMES[regime], iterations, 2, iterations)
    return [float(dataset[index]["image"][0, 0, 0]) for index in sampler]


@pytest.mark.parametrize(
    ("regime", "first", "second"),
    [
        ("real", {REAL}, {REAL}),
        ("traditional", {AGAIN}, {AGAIN}),
        ("synthetic", {MADE}, {MADE}),
        ("mixed", {REAL, MADE}, {REAL, MADE}),
        ("pretrained", {MADE}, {REAL}),
        ("pretrained_traditional", {AGAIN}, {REAL}),
        ("final", {AGAIN, MADE}, {REAL}),
        ("last_layer", {AGAIN, MADE}, {REAL}),
    ],
)
def test_a_regime_shows_its_images_in_its_order_for_as_many_steps(dataset, regime, first, second):
    seen = shades(dataset, regime)
    assert len(seen) == 24
    assert set(seen[:12]) == first
    assert set(seen[12:]) == second


def test_traditional_images_are_as_many_as_synthetic_ones(dataset):
    assert Counter(dataset.sources) == {"real": 4, "traditional": 6, "synthetic": 6}
    assert Counter(SourcedDataset(dataset.real, None, again).sources) == {"real": 4, "traditional": 4}
    counts = Counter(shades(dataset, "final", 12)[:12])
    assert counts == {AGAIN: 6, MADE: 6}


def test_other_images_have_another_digest(dataset, tmp_path):
    other = SourcedDataset(dataset.real, None, again)
    assert other.digest != dataset.digest == SourcedDataset(dataset.real, dataset.store, again).digest


def test_a_regime_without_its_images_is_refused(dataset):
    with pytest.raises(ValueError, match="needs synthetic images, and there are none"):
        regime_sampler(SourcedDataset(dataset.real, None, again), REGIMES["mixed"], 4, 1, 4)
    with pytest.raises(ValueError, match="needs traditional images"):
        regime_sampler(SourcedDataset(dataset.real, dataset.store), REGIMES["final"], 4, 1, 4)


def test_steps_are_divided_without_loss():
    assert iterations_of((Stage(("real",), 1.0), Stage(("real",), 2.0)), 10) == [3, 7]
    assert all(sum(iterations_of(stages, 101)) == 101 for stages in REGIMES.values())


@pytest.mark.parametrize("name", [*CLASSIFIERS, "SonoNet", "DenseNet"])
def test_the_last_layer_is_that_of_the_classes(name):
    made = {"SonoNet": lambda: SonoNet(1, 5, features=4), "DenseNet": lambda: DenseNet(2, 1, 5)}
    with torch.device("meta"):
        head = last_layer(made[name]() if name in made else create_classifier(name, 5, 64))
    assert isinstance(head, nn.Linear)
    assert head.out_features == 5


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
        self.head = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


def trained(dataset: SourcedDataset, regime: str, steps: int, stop: int | None = None) -> tuple[Small, Any]:
    torch.manual_seed(0)
    network = Small()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    sampler = regime_sampler(dataset, REGIMES[regime], steps, 4, steps)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=sampler)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        epoch_length=stop or steps,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        train_handlers=[StageHandler(network, optimizer, REGIMES[regime], steps)],
        decollate=False,
    )
    trainer.logger.setLevel("WARNING")
    trainer.run()
    return network, optimizer


def test_the_last_layer_alone_learns_in_its_stage(dataset):
    before, _ = trained(dataset, "last_layer", 12, stop=6)
    after, _ = trained(dataset, "last_layer", 12)
    for key, value in before.body.state_dict().items():  # weights and the statistics of normalizations
        assert torch.equal(value, after.body.state_dict()[key]), key
    assert not torch.equal(before.head.weight, after.head.weight)


def test_fine_tuning_changes_all_layers(dataset):
    before, _ = trained(dataset, "pretrained", 12, stop=6)
    after, _ = trained(dataset, "pretrained", 12)
    assert not torch.equal(before.body[0].weight, after.body[0].weight)
    assert not torch.equal(before.body[1].running_mean, after.body[1].running_mean)


def test_every_stage_begins_with_a_fresh_optimizer(dataset):
    _, one_stage = trained(dataset, "mixed", 12)
    _, two_stages = trained(dataset, "pretrained", 12)
    assert {int(state["step"]) for state in one_stage.state.values()} == {12}
    assert {int(state["step"]) for state in two_stages.state.values()} == {6}


def test_a_resumed_training_is_in_the_stage_of_its_iteration(dataset):
    network = Small()
    optimizer = torch.optim.Adam(network.parameters())
    optimizer.state[network.head.weight] = {"step": torch.tensor(3.0)}
    handler = StageHandler(network, optimizer, REGIMES["last_layer"], 12)
    engine = Engine(lambda *_: None)
    engine.state.iteration = 9  # in the middle of the second stage
    handler(engine)
    assert optimizer.state[network.head.weight]["step"] == 3
    assert [parameter.requires_grad for parameter in network.parameters()] == [False] * 4 + [True] * 2
    engine.state.iteration = 2
    handler(engine)
    assert all(parameter.requires_grad for parameter in network.parameters())
