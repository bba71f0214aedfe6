# SPDX-License-Identifier: Apache-2.0
"""The trainings of the ControlCG bundle as their configs have them, with networks small enough for a test."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from medcf.phantoms.head.datasets import SPLITS
from medcf.runtime.weights import load_weights

BUNDLE = Path(__file__).parents[2] / "bundles" / "controlcg"
CONFIGS = BUNDLE / "configs"
TINY: dict[str, Any] = {
    "spatial_size": [16, 16, 16],
    "spacing": 2.0,
    "num_train": 6,
    "num_val": 2,
    "batch_size": 2,
    "iterations": 4,
    "epoch_length": 1,
    "val_interval": 4,
    "checkpoint_interval": 1,
}
UNET = {
    "network_def#channels": [8, 16],
    "network_def#attention_levels": [False, True],
    "network_def#num_head_channels": 8,
    "network_def#norm_num_groups": 8,
    "network_def#cross_attention_dim": 8,
}
DENSENET = {
    "network_def#init_features": 4,
    "network_def#growth_rate": 2,
    "network_def#block_config": [1, 1],
}
SEGMENTER = {"network_def#features": [2, 2, 2, 2, 2, 2], "spatial_size": [32, 32, 32], "num_train": 2}  # halved 4 times
IDENTITY = {"network_def#features": 2, "network_def#max_features": 4, "network_def#hidden": 8}
WEIGHTS = ("classifier", "oracle", "evaluation_segmenter")
#: Config files, what makes the network small, and the split that is trained on.
TRAININGS: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "model": (("train",), UNET, "train"),
    "reference": (("train", "train_reference"), {**UNET, "pretrained": None}, "train"),
    "classifier": (("train", "train_classifier"), DENSENET, "train"),
    "oracle": (("train", "train_classifier", "train_oracle"), DENSENET, "oracle"),
    "evaluation_segmenter": (("train", "train_evaluation_segmenter"), SEGMENTER, "oracle"),
    "evaluation_segmenter_pairs": (
        ("train", "train_evaluation_segmenter", "train_evaluation_segmenter_pairs"),
        {**SEGMENTER, "pretrained": None},
        "oracle",
    ),
    "identity": (("train", "train_identity"), IDENTITY, "oracle"),
}

pytestmark = pytest.mark.bundle


def open_training(name: str, folder: Path, cache: Path, **options: Any) -> ConfigParser:
    configs, small, _ = TRAININGS[name]
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{config}.json" for config in configs])
    places = {"output_dir": str(folder), "export_path": str(folder / "weights.pt"), "cache_dir": str(cache)}
    parser.update({**TINY, "device": "$torch.device('cpu')", "bundle_root": str(BUNDLE), **places, **small, **options})
    return parser


def train(name: str, folder: Path, cache: Path, **options: Any) -> ConfigParser:
    parser = open_training(name, folder, cache, **options)
    for part in ("initialize", "run"):
        parser.get_parsed_content(part)
    return parser


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("phantoms")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "reference" else name for name in TRAININGS]
)
def test_an_interrupted_training_goes_on_and_exports_what_a_whole_one_does(name, tmp_path, cache):
    parser = train(name, tmp_path / "whole", cache)
    subjects = parser.get_parsed_content("train#dataset")._arrays["subject"]
    first = SPLITS[TRAININGS[name][2]]
    assert all(first <= subject < first + 1_000_000 for subject in subjects)

    part = tmp_path / "part"
    train(name, part, cache, **{"train#trainer#max_epochs": 2})
    (part / "weights.pt").unlink()
    train(name, part, cache)
    curves = [(tmp_path / run / "loss.csv").read_text() for run in ("whole", "part")]
    assert curves[0] == curves[1]
    assert len(list(csv.DictReader(curves[0].splitlines()))) == 4
    weights = [torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("whole", "part")]
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)
    load_weights(open_training(name, part, cache).get_parsed_content("network_def"), part / "weights.pt")
    assert (part / "metrics.json").is_file()


@pytest.mark.slow
def test_two_processes_train_one_network_and_one_of_them_writes(tmp_path, cache):
    files = str([str(CONFIGS / f"{name}.json") for name in ("train", "multi_gpu_train")])
    options = {**TINY, **UNET, "device": "cpu", "cache_dir": cache, "iterations": 2, "val_interval": 2}
    options |= {"output_dir": tmp_path, "export_path": tmp_path / "model.pt"}
    options |= {"gate#num_samples": 2, "gate#num_inference_steps": 2}
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value).replace(" ", ""))]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, "-m", "monai.bundle", "run", "--config_file", files, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Wrote the weights of iteration 2") == 1
    assert done.stdout.count("Gaussian bound from") == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    assert not any(key.startswith("module.") for key in weights)


@pytest.mark.parametrize("name", [name for name in TRAININGS if name != "model"])
def test_every_training_can_run_on_several_processes(name):
    """The overlay replaces ids that the config has, and nothing of the config's own is lost."""
    configs, _, _ = TRAININGS[name]
    overlay = ConfigParser.load_config_file(CONFIGS / "multi_gpu_train.json")
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{config}.json" for config in configs])
    for key in overlay:
        if key != "finalize":
            assert parser[key.lstrip("+")] is not None
    assert "@initialized" in parser["network"]
    assert any("@device" in str(parser[key]) for key in ("network", "train"))


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_bundles_weights_fit_their_config_and_are_small(name):
    weights = BUNDLE / "models" / f"{name}.pt"
    assert weights.stat().st_size < 2 * 2**20
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{config}.json" for config in TRAININGS[name][0]])
    load_weights(parser.get_parsed_content("network_def"), weights)
