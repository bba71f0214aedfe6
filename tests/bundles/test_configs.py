# SPDX-License-Identifier: Apache-2.0
"""MONAI finds in every training and in inference what it looks for by name, with everything built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from medcf.bundle.overlay import config_chain

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL: dict[str, Any] = {"num_train": 2, "num_val": 2, "batch_size": 2, "device": "cpu"}
GRIDS = {
    "diffice": {"spatial_size": [16, 20], "spacing": 7.0},
    "controlcg": {"spatial_size": [16, 16, 16], "spacing": 10.0},
}
TRAININGS = [
    *(("diffice", name) for name in ("train", "train_segmenter", "train_classifier", "train_oracle", "train_identity")),
    *(("diffice", name) for name in ("train_evaluation_segmenter", "train_sononet")),
    *(("controlcg", name) for name in ("train", "train_classifier", "train_oracle", "train_identity")),
    *(("controlcg", name) for name in ("train_reference", "train_evaluation_segmenter", "real_classifier")),
]

pytestmark = pytest.mark.bundle


def problems(bundle: str, name: str, kind: str, **options: Any) -> list[str] | None:
    files = config_chain(BUNDLES / bundle / "configs" / f"{name}.json")
    options |= {"bundle_root": str(BUNDLES / bundle)}
    workflow = ConfigWorkflow([str(file) for file in files], logging_file=False, workflow_type=kind, **options)
    workflow.initialize()
    return workflow.check_properties()


@pytest.fixture(autouse=True)
def same_hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("phantoms"))


@pytest.mark.parametrize(("bundle", "name"), TRAININGS)
def test_a_training_has_what_monai_looks_for(bundle, name, tmp_path, cache):
    places = {"output_dir": str(tmp_path), "cache_dir": cache}
    assert problems(bundle, name, "train", **SMALL, **GRIDS[bundle], **places) == []


@pytest.mark.parametrize("bundle", GRIDS)
def test_the_checkpoint_and_the_weights_come_before_what_may_fail(bundle):
    handlers = ConfigParser.load_config_file(BUNDLES / bundle / "configs" / "train.json")["train"]["handlers"]
    order = [name.removeprefix("%handler_defs::") for name in handlers]
    kept = [order.index(name) for name in ("curve", "checkpoint", "export")]
    assert kept == sorted(kept), "the loss curve is part of the checkpoint"
    assert kept[-1] < min(order.index(name) for name in ("validation", "metrics", "samples"))
    assert order.index("validation") < order.index("metrics"), "it writes what was validated"


@pytest.mark.parametrize("bundle", GRIDS)
def test_inference_has_what_monai_looks_for(bundle, tmp_path):
    assert problems(bundle, "inference", "infer", output_dir=str(tmp_path / "out")) == []


@pytest.mark.parametrize(
    ("bundle", "used", "training", "trained"),
    [
        ("diffice", "network_def", "train", "network_def"),
        ("diffice", "segmenter_def", "train_segmenter", "network_def"),
        ("diffice", "predictor_def", "train_classifier", "predictor"),
        ("diffice", "preprocessing", "train", "preprocessing"),
        ("controlcg", "network_def", "train", "network_def"),
        ("controlcg", "classifier_def", "train_classifier", "network_def"),
    ],
)
def test_inference_uses_what_was_trained(bundle, used, training, trained):
    folder = BUNDLES / bundle / "configs"
    inference, made = (
        ConfigParser.load_config_files([str(file) for file in config_chain(folder / f"{name}.json")])
        for name in ("inference", training)
    )
    speed = ("gradient_checkpointing", "use_flash_attention")
    ours, theirs = (
        {key: value for key, value in part.items() if key not in speed} for part in (inference[used], made[trained])
    )
    if used == "preprocessing":  # what is put back onto the files that are written, the network never sees
        remover = next(step for step in ours["transforms"] if step["_target_"].endswith("RemoveOverlaysd"))
        ours["transforms"][ours["transforms"].index(remover)] = {k: v for k, v in remover.items() if k != "keep"}
    assert ours == theirs
