# SPDX-License-Identifier: Apache-2.0
"""The identity network's training as its config has it, in small."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from medcf.bundle.overlay import config_chain
from medcf.networks.identity import IdentityNetwork
from medcf.phantoms.head.datasets import SPLITS
from medcf.runtime.weights import load_weights

CONFIG = Path(__file__).parents[2] / "bundles" / "diffice" / "configs" / "train_identity.json"


def open_config(folder: Path, iterations: int) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(config_chain(CONFIG))
    parser.update({
        "bundle_root": str(CONFIG.parents[1]), "device": "$torch.device('cpu')", "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"), "export_path": str(folder / "identity.pt"), "spatial_size": [16, 20],
        "spacing": 7.0, "num_train": 6, "num_views": 2, "num_val": 3, "batch_size": 3, "iterations": iterations,
        "epoch_length": 4, "val_interval": 1,
    })  # fmt: skip
    return parser


@pytest.mark.bundle
def test_the_training_goes_on_from_its_checkpoint_and_exports_what_the_network_needs(tmp_path):
    open_config(tmp_path, 4).get_parsed_content("run")
    first = torch.load(tmp_path / "identity.pt", weights_only=True)
    parser = open_config(tmp_path, 8)
    parser.get_parsed_content("run")
    rows = list(csv.DictReader((tmp_path / "out" / "loss.csv").read_text().splitlines()))
    assert [int(row["iteration"]) for row in rows] == list(range(1, 9))
    network = load_weights(IdentityNetwork(len(parser["parameters"])), tmp_path / "identity.pt")
    assert any(not torch.equal(first[key], value) for key, value in network.state_dict().items())
    subjects = parser.get_parsed_content("train#dataset")
    assert all(SPLITS["oracle"] <= subject < SPLITS["oracle"] + 1_000_000 for subject in subjects.subjects)
    assert network.mean.tolist() == pytest.approx(subjects.mean)
    assert network.std.tolist() == pytest.approx(subjects.std)


def test_the_bundles_weights_are_small():
    weights = CONFIG.parents[1] / "models" / "identity.pt"
    assert weights.stat().st_size < 2 * 2**20
    assert sum(value.numel() for value in torch.load(weights, weights_only=True).values()) < 400_000
