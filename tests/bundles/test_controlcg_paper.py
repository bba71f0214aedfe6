# SPDX-License-Identifier: Apache-2.0
"""The overlays of the ControlCG bundle that hold the published sizes and hyper-parameters."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import DenseNet121

from medcf.networks import AttentionInjection
from medcf.schedulers import RespacedDDIMScheduler

BUNDLE = Path(__file__).parents[2] / "bundles" / "controlcg"
CONFIGS = BUNDLE / "configs"
SMALL = {
    "spatial_size": [16, 16, 16],
    "spacing": 10.0,
    "network_def#channels": [8, 8, 16],
    "network_def#norm_num_groups": 4,
    "network_def#num_head_channels": 8,
    "num_train": 2,
    "num_val": 2,
    "iterations": 2,
    "epoch_length": 1,
    "val_interval": 2,
    "device": "$torch.device('cpu')",
    "bundle_root": str(BUNDLE),
}

pytestmark = pytest.mark.bundle


def read(*names: str, **options: object) -> ConfigParser:
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what belongs to the other base is copied
        parser.read_config([CONFIGS / f"{name}.json" for name in names])
    parser.update(options)
    return parser


@pytest.mark.parametrize("base", ["train", "inference"])
def test_the_network_of_the_paper_is_built_at_its_size(base):
    parser = read(base, "paper")
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
        noisy = torch.zeros(1, 1, *parser.get_parsed_content("spatial_size"))
        assert network(noisy).shape == (1, 1, 80, 96, 80)
    assert (network.patch_size, network.num_class_embeds) == (1, 3)
    assert parser.get_parsed_content("rows_at_once") == 1  # within 6 GB in 32 bits, too
    unet = network.unet
    assert [block.resnets[-1].out_channels for block in unet.down_blocks] == [64, 64, 128]
    assert [hasattr(block, "attentions") for block in unet.down_blocks] == [False, False, True]
    assert [hasattr(block, "attentions") for block in unet.up_blocks] == [True, False, False]
    for part in (unet.down_blocks[2], unet.up_blocks[0]):
        kinds = [type(module) for module in part.modules()]
        assert SABlock in kinds
        assert CrossAttentionBlock in kinds


def test_attention_of_the_paper_sees_9600_tokens_and_as_many_of_the_reference():
    with torch.device("meta"):
        network = read("inference", "paper").get_parsed_content("network_def").eval()
        lengths = []
        for block in AttentionInjection(network).blocks:
            block.register_forward_pre_hook(lambda block, args: lengths.append(args[0].shape[1]))
        network(torch.zeros(1, 1, 80, 96, 80))
    assert set(lengths) == {9600}


def test_the_overlay_holds_the_published_hyperparameters():
    parser = read("train", "paper", bundle_root=str(BUNDLE))
    published = {"spatial_size": [80, 96, 80], "batch_size": 1, "learning_rate": 1e-4, "noise_discount": 0.9}
    published |= {"prediction_type": "v_prediction", "weight_decay": 0.0, "white_noise_fraction": 0.0}
    ours = {"class_dropout": 0.1, "num_train_timesteps": 1000, "timestep_power": 1.0, "spacing": 2.0}
    assert {key: parser.get_parsed_content(key) for key in published | ours} == published | ours
    assert parser["optimizer"]["_target_"] == "torch.optim.Adam"
    assert parser.get_parsed_content("export_path").endswith("models/paper/model.pt")

    parser = read("inference", "paper", bundle_root=str(BUNDLE), progress=False)
    classifier = torch.nn.Identity()
    parser["classifier"] = classifier
    inferer = parser.get_parsed_content("inferer")
    assert inferer.options.strengths == (1.0,)
    assert (inferer.options.injection_scale, inferer.options.scale, inferer.options.null_class_labels) == (1.0, 5.0, 2)
    assert (inferer.options.reference_noise, inferer.options.reference_condition) == ("fresh", "same")
    assert isinstance(inferer.scheduler, RespacedDDIMScheduler)
    assert len(inferer.schedule(0)[0]) == 50
    assert parser["shared_options"]["num_inference_steps"] == "@num_inference_steps"
    for name in ("model", "classifier", "novelty"):
        assert parser.get_parsed_content(f"weights#{name}").endswith(f"models/paper/{name}.pt")


@pytest.mark.parametrize("overlay", ["paper", "paper_classifier"])
def test_an_overlay_changes_nothing_that_its_bases_do_not_have(overlay):
    bases = {"paper": ("train", "inference"), "paper_classifier": ("train", "train_classifier")}[overlay]
    known = {key for base in bases for key in ConfigParser.load_config_file(CONFIGS / f"{base}.json")}
    changed = {key.lstrip("+") for key in ConfigParser.load_config_file(CONFIGS / f"{overlay}.json")}
    assert changed - known <= {"_desc_", "models_dir", "rows_at_once"}


def test_the_classifier_of_the_paper_is_trained_on_full_volumes_and_judges_generated_ones():
    training = read("train", "train_classifier", "paper_classifier", bundle_root=str(BUNDLE))
    published = {"spatial_size": [160, 192, 160], "spacing": 1.0, "batch_size": 4, "learning_rate": 3e-2}
    assert {key: training.get_parsed_content(key) for key in published} == published
    assert training["optimizer"]["_target_"] == "torch.optim.SGD"
    inference = read("inference", "paper", bundle_root=str(BUNDLE))
    with torch.device("meta"):
        trained = training.get_parsed_content("network_def")
        judge = inference.get_parsed_content("classifier_def")
    assert isinstance(trained, DenseNet121)
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (trained, judge)]
    assert shapes[0] == shapes[1]
    size, spacing = (inference.get_parsed_content(key) for key in ("spatial_size", "spacing"))
    assert [n * spacing for n in size] == published["spatial_size"]  # the same millimeters
    assert list(judge.features.resize.size) == published["spatial_size"]
    assert training.get_parsed_content("export_path") == inference.get_parsed_content("weights#classifier")


def test_a_job_of_the_papers_config_runs_small(tmp_path):
    small = SMALL | {"classifier_def#size": [32, 32, 32], "case_list#demo_count": 1, "case_list#demo_spacing": 8.0}
    small |= {"num_inference_steps": 2, "progress": False, "output_dir": str(tmp_path / "out")}
    small |= {"classifier_def#block_config": [1, 1], "models_dir": str(tmp_path)}
    small = {key: value for key, value in small.items() if key not in ("num_train", "num_val", "iterations")}
    small["novelty"] = None  # and there is no file, either
    parser = read("inference", "paper", **small)
    for name, key in {"model": "network_def", "classifier": "classifier_def"}.items():
        torch.save(parser.get_parsed_content(key).state_dict(), tmp_path / f"{name}.pt")
    for part in ("initialize", "run"):
        parser.get_parsed_content(part)
    (row,) = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert int(row["num_function_evaluations"]) == 2 * 4  # guided, with two references, from pure noise
    assert float(row["mean_absolute_difference"]) > 0.01


def test_a_training_of_the_papers_config_runs_small(tmp_path):
    places = {"output_dir": str(tmp_path), "export_path": str(tmp_path / "model.pt"), "cache_dir": str(tmp_path)}
    parser = read("train", "paper", **SMALL, **places)
    for part in ("initialize", "run"):
        parser.get_parsed_content(part)
    network = read("inference", "paper", **SMALL).get_parsed_content("network_def")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert len(rows) == 3
