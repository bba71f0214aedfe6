# SPDX-License-Identifier: Apache-2.0
"""MONAI FL trains and evaluates the bundles by its default file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL: dict[str, Any] = {"num_train": 2, "num_val": 2, "batch_size": 2, "iterations": 1, "epoch_length": 1}


@pytest.fixture
def make_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An initialized client in a folder of its own: ``make_client(bundle)``."""
    monkeypatch.chdir(tmp_path)

    def make(bundle: str) -> MonaiAlgo:
        options = SMALL | {"export_path": str(tmp_path / "model.pt"), "device": "cpu"}
        algo = MonaiAlgo(
            str(BUNDLES / bundle), send_weight_diff=False, train_kwargs={**options}, eval_kwargs={**options}
        )
        algo.initialize({ExtraItems.CLIENT_NAME: "site"})
        return algo

    return make


@pytest.mark.bundle
@pytest.mark.parametrize("bundle", ["diffice", "controlcg"])
def test_a_client_initializes_by_the_default_names_of_the_configs(make_client, bundle: str) -> None:
    algo = make_client(bundle)
    names = algo.trainer.network.state_dict().keys()
    assert algo.evaluator.network.state_dict().keys() == names
    assert algo.trainer.state.max_epochs == 1


@pytest.mark.bundle
def test_a_round_trains_the_global_weights_and_evaluates_them(make_client) -> None:
    algo = make_client("diffice")
    before = {name: value.clone() for name, value in algo.get_weights().weights.items()}
    algo.train(ExchangeObject(weights=before))
    after = algo.get_weights().weights
    assert after.keys() == before.keys()
    assert any(not after[name].equal(before[name]) for name in before)
    metrics = algo.evaluate(ExchangeObject(weights=after)).metrics
    assert 0 < metrics["val_loss"] < 10
