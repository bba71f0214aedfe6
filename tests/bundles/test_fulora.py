# SPDX-License-Identifier: Apache-2.0
"""The jobs of the FU-LoRA bundle as a user starts them, with networks small enough for a test."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

pytest.importorskip("transformers")
pytest.importorskip("peft")

from medcf.data import SyntheticStore
from medcf.networks.tokenizer import fit_tokenizer
from medcf.runtime.error_report import root_cause
from tests import stable_diffusion as tiny

BUNDLE = Path(__file__).parents[2] / "bundles" / "fulora"
CONFIGS = BUNDLE / "configs"
SMALL = {
    "network_def#unet#channels": [8, 16, 16],
    "network_def#unet#norm_num_groups": 8,
    "network_def#unet#num_head_channels": 8,
    "text_encoder_def#hidden_size": 16,
    "text_encoder_def#num_heads": 2,
    "autoencoder_def#channels": [8, 8],
    "autoencoder_def#norm_num_groups": 8,
    "device": "cpu",
}
JUDGES = {
    "classifier_def#features": 4,
    "classifier_def#max_features": 8,
    "oracle_def#init_features": 4,
    "oracle_def#growth_rate": 4,
    "copies_def#features": 4,
}

pytestmark = pytest.mark.bundle


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    fit_tokenizer(parser["class_prompts"], folder / "tokenizer.json")
    parser.update(SMALL | JUDGES | {"models_dir": str(folder), "captions": parser["class_prompts"]})
    names = {"model": "network_def", "autoencoder": "autoencoder_def", "classifier": "classifier_def"}
    for name, key in {**names, "oracle": "oracle_def", "copies": "copies_def"}.items():
        network = parser.get_parsed_content(key)
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
        torch.save(dict(network.state_dict()), folder / f"{name}.pt")
    return SMALL | {"models_dir": str(folder), "num_inference_steps": 4, "count": 3, "shard_size": 6}


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A run that nothing disturbed."""
    return job.run(output_dir=str(tmp_path_factory.mktemp("whole") / "store"))


def images(folder: Path) -> np.ndarray:
    return torch.stack([item["image"] for item in SyntheticStore(folder)]).numpy()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".npy", ".csv")}


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_class_is_made_and_every_row_says_how(whole):
    rows = manifest(whole)
    assert [row["class_name"] for row in rows[:6]] == [row["class_name"] for row in rows[6:12]]
    assert len({row["class_name"] for row in rows}) == 6
    assert {row["caption"] for row in rows if row["class_name"] == "Femur"} == {"a photo of fetal femur"}
    settings = {(row["solver"], row["num_inference_steps"], row["guidance_scale"]) for row in rows}
    assert settings == {("euler", "4", "3.0")}
    assert all(len(row["model sha256"]) == 64 for row in rows)
    assert np.unique(images(whole).reshape(18, -1), axis=0).shape[0] == 18


def test_a_run_killed_and_continued_on_two_ranks_gives_the_files_of_one_that_was_not(job, whole, tmp_path):
    out, more = tmp_path / "store", {"batch_size": 2}
    expected = job.run(output_dir=str(tmp_path / "expected"), **more)
    command = job.command(output_dir=out, **more)
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.rglob("*.npy")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told[-2000:]
    assert list(out.rglob("*.npy"))
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command[1:]]
    done = subprocess.run(ranks, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files(out) == files(expected)


def test_a_prompt_of_ones_own_and_chosen_classes(job, tmp_path):
    out = job.run(output_dir=str(tmp_path / "prompt"), prompt="a photo of fetal brain", count=2)
    assert [(row["label"], row["caption"]) for row in manifest(out)] == [("", "a photo of fetal brain")] * 2
    out = job.run(output_dir=str(tmp_path / "classes"), classes=[1, 4], count=[1, 2])
    assert sorted(row["class_name"] for row in manifest(out)) == ["Brain", "Maternal cervix", "Maternal cervix"]


def train(overlays, **given):
    configs = [str(CONFIGS / name) for name in ("train.json", *overlays)]
    workflow = ConfigWorkflow(configs, logging_file=False, workflow_type="train", **given)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    return workflow


@pytest.fixture(scope="module")
def adapter(job, tmp_path_factory):
    """An adapter of the module's model, trained for four iterations at a high rate."""
    folder = tmp_path_factory.mktemp("adapter")
    given = SMALL | {"models_dir": job.options["models_dir"], "learning_rate": 0.05, "views": 2, "num_train": 4}
    given |= {"num_val": 2, "output_dir": str(folder), "cache_dir": str(folder / "phantoms")}
    before = (Path(job.options["models_dir"]) / "model.pt").read_bytes()
    train(["train_lora.json"], **given)
    assert (Path(job.options["models_dir"]) / "model.pt").read_bytes() == before
    return folder / "adapter.safetensors"


def test_an_adapter_counts_by_its_ratio_and_is_named_in_every_row(job, adapter, whole, tmp_path):
    found = {}
    for ratio in (0.0, 0.5, 1.0):
        out = job.run(output_dir=str(tmp_path / f"{ratio:g}"), adapter=str(adapter), merging_ratio=ratio)
        found[ratio] = images(out)
    assert {row["merging_ratio"] for row in manifest(out)} == {"1.0"}
    assert all(len(row["adapter 1 sha256"]) == 64 for row in manifest(out))
    np.testing.assert_array_equal(found[0.0], images(whole))
    assert np.abs(found[0.5] - found[0.0]).max() > 0.02
    assert np.abs(found[1.0] - found[0.5]).max() > 0.02
    with pytest.raises((RuntimeError, ValueError)) as error:
        job.run(output_dir=str(tmp_path / "no"), adapter=str(tmp_path / "no.safetensors"))
    assert "no.safetensors does not exist" in str(root_cause(error.value))


def test_a_store_of_other_settings_is_refused(job, whole):
    with pytest.raises((RuntimeError, ValueError)) as error:
        job.run(output_dir=str(whole), guidance_scale=2.0)
    assert "guidance_scale" in str(root_cause(error.value))


def test_the_evaluation_compares_with_seen_and_unseen_images(job, tmp_path):
    small = JUDGES | {"num_training_images": 12, "num_unseen": 40, "cache_dir": str(tmp_path / "phantoms")}
    out = job.run("evaluate.json", output_dir=str(tmp_path / "out"), **small)
    figures = json.loads((out / "assessment.json").read_text())
    assert figures["images"] == {"generated": 18, "training": 12, "unseen": 40}
    assert {row["class"] for row in figures["recognized"]["oracle"]} == {row["class_name"] for row in manifest(out)}
    assert figures["copies"]["recall"]["identical"]["share"] == 1.0  # whatever the network, a copy is its own nearest
    assert (out / "neighbors.png").stat().st_size > 0


def test_stable_diffusion_is_adapted_and_generates_by_the_paper_s_config(tmp_path):
    folder = tiny.write(tmp_path / "checkpoint")
    sizes = {"stable_diffusion": str(folder), "spatial_size": [16, 16], "latent_size": [8, 8], "device": "cpu"}
    given = sizes | {"rank": 2, "views": 1, "num_train": 4, "num_val": 2, "learning_rate": 0.05, "amp_dtype": None}
    given |= {"output_dir": str(tmp_path / "lora"), "cache_dir": str(tmp_path / "phantoms")}
    given |= {"models_dir": str(tmp_path)}
    train(["train_lora.json", "paper.json"], **given)
    results = []
    for name, more in {"plain": {}, "site": {"adapter": str(tmp_path / "lora" / "adapter.safetensors")}}.items():
        workflow = ConfigWorkflow(
            [str(CONFIGS / config) for config in ("inference.json", "paper.json")],
            logging_file=False,
            workflow_type="infer",
            **sizes | more | {"count": 1, "num_inference_steps": 3, "output_dir": str(tmp_path / name)},
        )
        workflow.initialize()
        workflow.run()
        results.append(images(tmp_path / name))
    assert np.abs(results[1] - results[0]).max() > 0.01
    rows = manifest(tmp_path / "site")
    assert [row["class_name"] for row in rows] == ["Abdomen", "Brain", "Femur", "Thorax", "Other"]
    assert {"unet/diffusion_pytorch_model.safetensors sha256", "adapter 1 sha256"} <= rows[0].keys()
    assert {row["solver"] for row in rows} == {"euler"}


def test_the_paper_s_config_says_what_the_paper_says():
    paper = ConfigParser.load_config_file(CONFIGS / "paper.json")
    lora = ConfigParser.load_config_file(CONFIGS / "train_lora.json")
    assert (paper["rank"], lora["alpha"], lora["num_train"], paper["views"]) == (128, "@rank", 100, 100)
    assert (paper["learning_rate"], paper["batch_size"], paper["num_inference_steps"]) == (1e-4, 2, 20)
    assert lora["lr_scheduler"]["_target_"].endswith("ConstantLR")
    assert lora["adapted_layers"] == "cross-attention"
    assert paper["spatial_size"] == [512, 512]
    assert (paper["prediction_type"], paper["merging_ratio"], paper["count"]) == ("epsilon", 1.0, 500)


def test_networks_are_those_of_the_training():
    inference, training, evaluation = (
        ConfigParser.load_config_file(CONFIGS / f"{name}.json") for name in ("inference", "train", "evaluate")
    )
    for name in ("network_def", "autoencoder_def", "class_prompts", "spatial_size", "latent_size", "prediction_type"):
        assert inference[name] == training[name], name
    for name in ("classifier_def", "oracle_def", "copies_def"):
        assert evaluation[name] == training[name], name
    assert inference["text_encoder_def"] | {"tokenizer": ""} == training["text_encoder_def"] | {"tokenizer": ""}
