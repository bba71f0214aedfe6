# SPDX-License-Identifier: Apache-2.0
"""The jobs of the fetalplanes bundle as a user starts them, with networks small enough for a test."""

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

from medcf.data import SyntheticStore
from medcf.runtime.error_report import root_cause

BUNDLE = Path(__file__).parents[2] / "bundles" / "fetalplanes"
CONFIGS = BUNDLE / "configs"
SMALL = {
    "spatial_size": [16, 16],
    "network_def#channels": [8, 16, 16],
    "network_def#num_head_channels": 8,
    "guide_def#channels": [8, 8, 16],
    "guide_def#num_head_channels": 8,
    "device": "cpu",
}
JUDGES = {
    "judge_def#features": 4,
    "judge_def#max_features": 8,
    "copies_def#features": 4,
    "copies_def#grid": [2, 2],
}
ORACLE = {"oracle_def#init_features": 4, "oracle_def#growth_rate": 4}

GUIDE = {key: value for key, value in SMALL.items() if key.startswith("guide_def")}

pytestmark = pytest.mark.bundle


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Overrides with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    parser.update(SMALL | JUDGES | ORACLE | {"models_dir": str(folder)})
    names = {"model": "network_def", "guide": "guide_def", "judge": "judge_def"}
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


def test_every_kind_of_guidance_draws_its_own_images_and_every_row_names_it(job, whole, tmp_path):
    found = {"free": images(whole)}
    for name, free, guide in (("none", 1.0, 0.0), ("classifier", 1.0, 20.0), ("both", 2.0, 20.0)):
        out = job.run(output_dir=str(tmp_path / name), guidance_scale=free, classifier_scale=guide)
        found[name] = images(out)
        row = manifest(out)[0]
        assert (row["guidance_scale"], row["classifier_scale"], row["solver"]) == (str(free), str(guide), "ddim")
        assert ("guide sha256" in row) is (guide > 0)
    names = list(found)
    for place, name in enumerate(names):
        assert all(np.abs(found[name] - found[other]).max() > 0.02 for other in names[:place]), name


def test_a_run_killed_three_times_gives_the_files_of_one_that_was_not(job, tmp_path):
    out, more = tmp_path / "store", {"shard_size": 3, "batch_size": 2, "classifier_scale": 5.0, "count": 4}
    expected = job.run(output_dir=str(tmp_path / "expected"), **more)
    command = job.command(output_dir=out, **more)
    for times in (1, 2, 3):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(list(out.rglob("*.npy"))) < 2 * times and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
        assert process.returncode == -signal.SIGKILL, told[-2000:]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command[1:]]
    done = subprocess.run(ranks, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files(out) == files(expected)


def test_a_store_of_other_settings_is_refused_but_filters_may_be_added(job, whole, tmp_path):
    with pytest.raises((RuntimeError, ValueError)) as error:
        job.run(output_dir=str(whole), classifier_scale=1.0)
    assert "classifier_scale" in str(root_cause(error.value))
    small = JUDGES | {"num_real": 40, "cache_dir": str(tmp_path / "phantoms"), "filters#judge": False}
    job.run("filter.json", output_dir=str(whole), **small)
    with (whole / "filtered.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert {"structure", "copies", "kept"} <= rows[0].keys()
    assert not {"judge", "rated"} & rows[0].keys()
    kept = sum(row["kept"] == "True" for row in rows)
    assert len(SyntheticStore(whole, kept=True)) == kept
    assert len(SyntheticStore(whole, kept=False)) == 18 - kept


def test_people_s_ratings_teach_a_filter(job, tmp_path):
    out = job.run(output_dir=str(tmp_path / "rated"))
    order = np.argsort(images(out).std((1, 2, 3)))
    rated = [(index, "reject") for index in order[:6]] + [(index, "accept") for index in order[-6:]]
    lines = [f"synthetic-{index:07d}\t{rating}" for index, rating in rated]
    (tmp_path / "ratings.tsv").write_text("\n".join(["case\trating", *lines]))
    small = JUDGES | {"num_real": 40, "cache_dir": str(tmp_path / "phantoms"), "ratings": str(tmp_path / "ratings.tsv")}
    small |= {"filters#judge": False, "filters#copies": False, "filters#structure": False}
    job.run("filter.json", output_dir=str(out), **small)
    with (out / "filtered.csv").open() as file:
        scores = np.array([float(row["rated score"]) for row in csv.DictReader(file)])
    assert scores[order[-6:]].mean() > scores[order[:6]].mean() + 0.05


def test_the_evaluation_tells_good_from_bad_images(job, tmp_path):
    small = JUDGES | ORACLE | {"num_training_images": 12, "num_unseen": 68, "cache_dir": str(tmp_path / "phantoms")}
    small |= {"num_real": 40, "filters#copies": False, "filters#judge": False}
    out = job.run("filter.json", "evaluate.json", output_dir=str(tmp_path / "out"), **small)
    figures = json.loads((out / "assessment.json").read_text())
    assert figures["images"] == {"generated": 18, "training": 12, "unseen": 68}
    found = [SyntheticStore(out, kept=kept) for kept in (True, False)]
    parts = {name for name, part in zip(("kept", "rejected"), found, strict=True) if len(part)}
    assert set(figures["distances"]["judge"]) == {"generated", "training", *parts}
    assert figures["copies"]["recall"]["identical"]["share"] == 1.0  # whatever the network, a copy is its own nearest


def train(overlays, **given):
    configs = [str(CONFIGS / name) for name in ("train.json", *overlays)]
    workflow = ConfigWorkflow(configs, logging_file=False, workflow_type="train", **given)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    return workflow


def given(folder: Path, options, **more):
    return JUDGES | ORACLE | {
        "spatial_size": [16, 16],
        "device": "cpu",
        "models_dir": options["models_dir"],
        "cache_dir": str(folder / "phantoms"),
        "output_dir": str(folder / "run"),
        "num_train": 12,
        "num_val": 6,
        "iterations": 4,
        "epoch_length": 2,
        "batch_size": 4,
        **more,
    }  # fmt: skip


@pytest.fixture
def store(job, tmp_path) -> Path:
    """A store whose generator names the subjects that it saw."""
    out = job.run(output_dir=str(tmp_path / "store"))
    header = json.loads((out / "store.json").read_text())
    (out / "store.json").write_text(json.dumps({**header, "subjects": ["0" * 16]}))
    return out


@pytest.mark.parametrize("regime", ["real", "final", "last_layer"])
def test_a_classifier_is_trained_in_a_regime_and_tested(options, store, tmp_path, regime):
    torch.manual_seed(0)
    workflow = train(
        ["train_classifier.json"],
        **given(tmp_path, options, regime=regime, store=str(store), num_test=20, classifier="ResNet18"),
    )
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert (scores["regime"], scores["classifier"], scores["images"]) == (regime, "ResNet18", 20)
    assert np.sum(scores["confusion"]) == 20
    assert (tmp_path / "run" / "classifier.pt").is_file()
    assert (tmp_path / "run" / "confusion.png").stat().st_size > 0
    sources = {"real": {"real", "traditional"}}.get(regime, {"real", "traditional", "synthetic"})
    assert set(workflow.parser.get_parsed_content("train#dataset").sources) == sources
    trained = [parameter.requires_grad for parameter in workflow.parser.get_parsed_content("network").parameters()]
    assert trained.count(True) == (2 if regime == "last_layer" else len(trained))


def test_a_store_whose_generator_saw_the_test_set_is_refused(options, store, tmp_path):
    from medcf.phantoms import PlanesDataset
    from medcf.runtime.subjects import subject_key

    site = {"site": "A", "balance": "fetal_planes_db", "captions": False}
    tested = PlanesDataset("test", 20, size=(16, 16), spacing=None, **site)
    header = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(
        json.dumps({**header, "subjects": [subject_key(f"phantom {tested.subjects[0]}")]})
    )
    with pytest.raises((RuntimeError, ValueError)) as error:
        train(
            ["train_classifier.json"], **given(tmp_path, options, store=str(store), num_test=20, classifier="ResNet18")
        )
    told = str(root_cause(error.value))
    assert str(tested.subjects[0]) in told
    assert str(store) in told


def test_an_unknown_regime_lists_the_known_ones(options, tmp_path):
    with pytest.raises((RuntimeError, ValueError)) as error:
        train(
            ["train_classifier.json"],
            **given(tmp_path, options, regime="pretraind", num_test=20, classifier="ResNet18"),
        )
    assert "'pretraind': choose one of real, traditional" in str(root_cause(error.value))


def test_the_guide_learns_from_noisy_images(options, tmp_path):
    export = tmp_path / "guide.pt"
    train(["train_guide.json"], **given(tmp_path, options, export_path=str(export)), **GUIDE)
    before, after = (torch.load(file, weights_only=True) for file in (Path(options["models_dir"]) / "guide.pt", export))
    assert before.keys() == after.keys()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_the_paper_s_config_trains_its_variances_and_generates_with_them(options, tmp_path):
    shared = {"channels": [8, 8, 16], "attention_levels": [False, False, True], "num_head_channels": 8}
    shared |= {"norm_num_groups": 8, "num_res_blocks": [1, 1, 1]}
    network, guide = (
        {f"{name}#{key}": value for key, value in shared.items()} for name in ("network_def", "guide_def")
    )
    sizes, models = network | guide, {"models_dir": str(tmp_path / "models")}
    settings = given(tmp_path, options, **models, val_interval=2)
    train(["paper.json"], **settings, **sizes, gate=None)
    train(["paper.json", "train_guide.json"], **settings | {"output_dir": str(tmp_path / "guide")}, **guide)
    workflow = ConfigWorkflow(
        [str(CONFIGS / name) for name in ("inference.json", "paper.json")],
        logging_file=False,
        workflow_type="infer",
        **SMALL | sizes | models | {"count": 1, "num_inference_steps": 3, "output_dir": str(tmp_path / "out")},
    )
    workflow.initialize()
    workflow.run()
    row = manifest(tmp_path / "out")[0]
    assert (row["solver"], row["classifier_scale"]) == ("ddpm", "1.0")
    assert np.isfinite(images(tmp_path / "out")).all()


def test_the_paper_s_config_says_what_the_paper_says():
    paper = ConfigParser.load_config_file(CONFIGS / "paper.json")
    assert paper["spatial_size"] == [128, 128]
    assert paper["count"] == 2 * 5000
    assert paper["num_train"] == 9923
    assert paper["+network_def"]["out_channels"] == 2
    assert paper["+scheduler"]["variance_type"] == "learned_range"
    assert (paper["guidance_scale"], paper["classifier_scale"]) == (1.0, 1.0)


def test_networks_are_those_of_the_training():
    inference, training, screening, evaluation = (
        ConfigParser.load_config_file(CONFIGS / f"{name}.json") for name in ("inference", "train", "filter", "evaluate")
    )
    for name in ("network_def", "guide_def", "spatial_size", "prediction_type", "num_classes"):
        assert inference[name] == training[name], name
    assert screening["judge_def"] == training["judge_def"] == evaluation["judge_def"]
    assert screening["copies_def"] == training["copies_def"] == evaluation["copies_def"]
    assert evaluation["oracle_def"] == training["oracle_def"]
    assert screening["false_alarms"] == evaluation["false_alarms"]
