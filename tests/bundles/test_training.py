# SPDX-License-Identifier: Apache-2.0
"""The trainings of the Diff-ICE bundle as a user starts them, with a network small enough for a test."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from medcf.bundle.overlay import config_chain

CONFIGS = Path(__file__).parents[2] / "bundles" / "diffice" / "configs"
TINY = {
    "spatial_size": "[16,20]",
    "spacing": 7.0,
    "num_train": 12,
    "num_val": 4,
    "batch_size": 2,
    "iterations": 12,
    "epoch_length": 3,
    "val_interval": 1,
    "device": "cpu",
    "network_def#channels": "[8,16]",
    "network_def#attention_levels": "[False,True]",
    "network_def#num_head_channels": 8,
    "gate#num_samples": 2,
    "gate#num_inference_steps": 2,
}
TRAININGS = ("train", "train_segmenter", "train_classifier", "train_oracle", "train_sononet")

pytestmark = pytest.mark.bundle


def command(configs: tuple[str, ...], **options: object) -> list[str]:
    files = str([str(CONFIGS / f"{name}.json") for name in configs])
    arguments = [text for key, value in {**TINY, **options}.items() for text in (f"--{key}", str(value))]
    return ["-m", "monai.bundle", "run", "--config_file", files, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("phantoms")


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path, cache):
    def start(name: str) -> subprocess.Popen:
        folder = tmp_path / name
        options = {"output_dir": folder, "export_path": folder / "model.pt", "cache_dir": cache}
        arguments = [sys.executable, *command(("train",), **options)]
        return subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole = start("whole")
    assert whole.communicate(timeout=300)[1] is not None
    assert whole.returncode == 0

    killed = start("killed")
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint.pt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed" / "model.pt").exists(), "the training was over before it could be killed"

    resumed = start("killed")
    errors = resumed.communicate(timeout=300)[1].decode()
    assert resumed.returncode == 0, errors
    curves = [(tmp_path / name / "loss.csv").read_text() for name in ("whole", "killed")]
    assert curves[0] == curves[1]
    assert len(list(csv.DictReader(curves[0].splitlines()))) == 12
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "killed")]
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)
    checkpoint = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(checkpoint["ema"], weights[1], atol=0, rtol=0)
    assert any(not torch.equal(checkpoint["network"][key], value) for key, value in weights[1].items())


@pytest.mark.slow
def test_two_processes_train_one_network_and_one_of_them_writes(tmp_path, cache):
    folder = tmp_path / "out"
    options = {"output_dir": folder, "export_path": folder / "model.pt", "cache_dir": cache, "iterations": 6}
    arguments = command(("train", "multi_gpu_train"), **options, val_interval=2)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, *arguments], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Wrote the weights of iteration 6") == 1
    assert len(list((folder / "tensorboard").iterdir())) == 1
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint.pt", "gate.json", "loss.csv", "metrics.json", "model.pt", "samples", "tensorboard"}
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())
    assert not any(key.startswith("module.") for key in weights)


@pytest.mark.slow
def test_a_learned_variance_is_trained_validated_and_sampled_with(tmp_path, cache):
    folder = tmp_path / "out"
    options = {"output_dir": folder, "export_path": folder / "model.pt", "cache_dir": cache, "iterations": 6}
    arguments = [sys.executable, *command(("train", "learned_range"), **options)]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 < json.loads((folder / "metrics.json").read_text())["metrics"]["val_loss"] < 10
    assert list((folder / "samples").iterdir())
    bias = torch.load(folder / "model.pt", weights_only=True)["out.2.conv.bias"]
    assert bias.shape == (2,)
    assert float(bias[1].abs()) > 0  # the variance's own channel, which starts at 0


def test_a_training_ends_with_its_gate_which_also_runs_alone(tmp_path, cache):
    places = {"cache_dir": cache, "export_path": tmp_path / "model.pt"}
    short = {"iterations": 3, "spatial_size": "[32,40]", "spacing": 3.5, "val_interval": 2}

    def start(*words: str, **options: object) -> str:
        arguments = command(("train",), **places, **short, **options)
        arguments[3:3] = words
        done = subprocess.run(
            [sys.executable, *arguments], env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    printed = start(output_dir=tmp_path / "whole")
    figures = json.loads((tmp_path / "whole" / "gate.json").read_text())
    assert f"Gate of {tmp_path / 'model.pt'}: 4 held-out images" in printed
    assert [row["t"] for row in figures["denoising"]] == [50, 150, 300, 450, 600, 750, 850, 950]
    assert not figures["passed"]  # three iterations are not enough
    assert printed.splitlines()[-1].startswith("FAIL: the x0 error is above its limit at t = ")
    assert list(figures["samples"]) == ["f", "oracle"]
    assert [row["class"] for row in figures["samples"]["f"]] == ["NSP", "SP"]

    alone = start("check_gate", output_dir=tmp_path / "alone", **{"gate#limits": "{300: 1000.0}", "gate#aims": "[0,0]"})
    again = json.loads((tmp_path / "alone" / "gate.json").read_text())
    assert alone.splitlines()[-1] == again["verdict"] == "PASS (weak: 4 images; use --num_val 64)"
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["gate.json"]
    assert again["denoising"] == [{**figures["denoising"][2], "limit": 1000.0, "passed": True}]


@pytest.mark.parametrize("bundle", ["diffice", "controlcg"])
def test_only_trainings_of_a_diffusion_model_have_a_gate(bundle):
    configs = CONFIGS.parents[1] / bundle / "configs"
    gates = {}
    for path in configs.glob("*.json"):
        chain = [path.name for path in config_chain(path)]
        if chain[0] == "train.json":
            parser = ConfigParser()
            parser.read_config([configs / name for name in chain])
            noises = "scheduler" in parser["prepare_batch"]
            gates[path.name] = (parser.get("gate") is not None, noises)
    assert {name for name, (has, noises) in gates.items() if has != noises} == set()
    assert {has for has, _ in gates.values()} == {True, False}


@pytest.mark.parametrize("base", ["train", "inference"])
def test_the_overlay_of_the_paper_builds_its_network(base):
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{base}.json", CONFIGS / "paper.json"])
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
        noisy = torch.zeros(1, 1, *parser.get_parsed_content("spatial_size"))
        assert network(noisy).shape == (1, 1, 224, 288)
    assert network.num_class_embeds is None
    attention = ["attentions" in dict(block.named_children()) for block in network.down_blocks]
    assert attention == [False, False, False, True, True, True]  # at 1/8, 1/16 and 1/32 of the size


def test_the_overlay_of_the_paper_holds_the_published_hyperparameters():
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", CONFIGS / "paper.json"])
    parser["bundle_root"] = str(CONFIGS.parent)
    published = {"iterations": 300000, "batch_size": 16, "learning_rate": 1e-4, "weight_decay": 0.05}
    published |= {"class_dropout": 1.0, "timestep_power": 1.0, "num_train_timesteps": 1000}
    assert {key: parser.get_parsed_content(key) for key in published} == published
    assert parser.get_parsed_content("export_path").endswith("models/paper/model.pt")

    parser = ConfigParser()
    parser.read_config([CONFIGS / "inference.json", CONFIGS / "paper.json"])
    parser["bundle_root"] = str(CONFIGS.parent)
    inferer = parser["shared_options"]
    assert parser["inferer"]["_target_"] == "medcf.inferers.select_method"
    assert parser["method"] == "diffice"
    published = {"num_inference_steps": 400, "strength": 0.3, "num_iterations": 5, "perceptual_scale": 30}
    published |= {"classifier_scales": [40, 60, 80], "null_class_labels": None}
    assert {key: inferer[key] for key in published} == published
    assert parser.get_parsed_content("weights#segmenter").endswith("models/paper/segmenter.pt")
    with torch.device("meta"):
        predictor = parser.get_parsed_content("predictor_def")
    assert [block[-3].out_channels for block in predictor.blocks] == [16, 32, 64, 128, 128]


def test_the_perceptual_extractor_of_the_paper_asks_for_its_weights(tmp_path):
    parser = ConfigParser()
    parser.read_config([CONFIGS / "inference.json", CONFIGS / "paper.json"])
    parser["radimagenet_weights"] = str(tmp_path / "missing.pt")
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("perceptual")
    assert isinstance(error.value.__cause__, FileNotFoundError)
    parser["radimagenet_weights"] = None
    features = parser.get_parsed_content("perceptual")(torch.zeros(1, 1, 32, 32))
    assert features[0].shape == (1, 512, 4, 4)


@pytest.mark.parametrize("base", ["train_segmenter", "train_classifier"])
def test_the_overlay_of_the_papers_classifier_fits(base):
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", CONFIGS / f"{base}.json", CONFIGS / "paper_classifier.json"])
    parser["bundle_root"] = str(CONFIGS.parent)
    assert parser.get_parsed_content("spatial_size") == [224, 288]
    assert "models/paper/" in parser.get_parsed_content("export_path")
    if base == "train_classifier":
        assert parser.get_parsed_content("predictor").blocks[-1][-3].out_channels == 128


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_removes_overlays_from_the_users_images(name):
    parser = ConfigParser()
    parser.read_config(config_chain(CONFIGS / f"{name}.json"))
    for part in ("train", "validate"):
        dataset = parser[part]["dataset"]
        assert dataset["preprocessing"] == "@preprocessing"
    preprocessing = parser.get_parsed_content("preprocessing")
    assert [type(step).__name__ for step in preprocessing.transforms] == ["LoadImaged", "RemoveOverlaysd", "ToGridd"]
