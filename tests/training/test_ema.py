# SPDX-License-Identifier: Apache-2.0
"""The average of the weights, against its formula."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from medcf.training.state import EMAHandler


def drift(network: nn.Linear) -> Engine:
    """Set the weight to the number of the iteration, in every iteration."""

    def step(engine, _batch):
        with torch.no_grad():
            network.weight.fill_(float(engine.state.iteration))

    return Engine(step)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, 10), (0.99, 4)])
def test_the_average_follows_the_written_formula(decay, warmup):
    network = nn.Linear(1, 1)
    expected = network.weight.item()
    ema = EMAHandler(network, decay=decay, warmup=warmup)
    engine = drift(network)
    ema.attach(engine)
    engine.run([0] * 10, max_epochs=3)
    for i in range(1, 31):
        d = min(decay, (1 + i) / (warmup + i))
        expected = d * expected + (1 - d) * i
    assert ema.ema_model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert network.weight.item() == 30


def test_the_average_goes_on_from_its_weights_and_the_iteration_alone():
    whole, halves = nn.Linear(1, 1), nn.Linear(1, 1)
    halves.load_state_dict(whole.state_dict())
    ema = EMAHandler(whole, decay=0.9)
    engine = drift(whole)
    ema.attach(engine)
    engine.run([0] * 4, max_epochs=4)

    first = EMAHandler(halves, decay=0.9)
    engine = drift(halves)
    first.attach(engine)
    engine.run([0] * 4, max_epochs=2)
    state = dict(engine.state_dict())
    second = EMAHandler(halves, decay=0.9)
    second.ema_model.load_state_dict(first.ema_model.state_dict())
    engine = drift(halves)
    second.attach(engine)
    engine.load_state_dict({**state, "max_epochs": 4})
    engine.run([0] * 4)
    torch.testing.assert_close(second.ema_model.state_dict(), ema.ema_model.state_dict())
