# SPDX-License-Identifier: Apache-2.0
"""The bundle check finds what MONAI Deploy, MONAI Label and MONAI FL would stumble over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.transforms import LoadImage, LoadImaged

from medcf.bundle.consumers import check_consumers, deploy_transforms, label_transforms

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., list[str]]:
    """Check a copy of the bundle after a change to a config: ``edit("inference.json", change)``."""

    def check(name: str, change: Callable[[dict[str, Any]], Any]) -> list[str]:
        shutil.copytree(BUNDLE, tmp_path / "diffice")
        file = tmp_path / "diffice" / "configs" / name
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return check_consumers(tmp_path / "diffice")

    return check


class StudyLoader(LoadImaged):
    """A loader that Label takes out and Deploy does not know."""

    def __init__(self) -> None:
        super().__init__("image")


class LeavesAMask:
    """Leaves a second tensor beside the image."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "mask": data["image"] > 0}


def transform(name: str) -> dict[str, str]:
    return {"_target_": f"tests.bundle.test_consumers.{name}"}


def test_deploy_goes_by_the_name_and_label_by_the_class() -> None:
    loaders = [LoadImaged("image"), StudyLoader(), LoadImage(), LeavesAMask()]
    assert deploy_transforms(loaders) == [loaders[1], loaders[3]]
    assert label_transforms(loaders) == [loaders[2], loaders[3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["preprocessing"].update(transforms=[]), "preprocessing is not a Compose"),
        (lambda config: config.update(postprocessing={"_target_": "LoadImaged", "keys": "a"}), "is not a Compose"),
        (lambda config: config["preprocessing"]["transforms"].pop(0), "must begin with LoadImaged"),
        (
            lambda config: config["preprocessing"]["transforms"].__setitem__(0, transform("StudyLoader")),
            "drop different parts of the loader StudyLoader",
        ),
        (
            lambda config: config["preprocessing"]["transforms"].append(transform("LeavesAMask")),
            "preprocessing leaves mask, which MONAI Deploy also passes to the inferer",
        ),
        (
            lambda config: config["preprocessing"]["transforms"].insert(1, transform("LeavesAMask")),
            "must be MapTransforms",
        ),
        (
            lambda config: config["preprocessing"]["transforms"].append({"_target_": "FromMetaTensord", "keys": "x"}),
            "preprocessing fails on an image in memory (",
        ),
        (
            lambda config: config["postprocessing"]["transforms"].append({"_target_": "Identityd", "keys": "image"}),
            "postprocessing of pred alone fails",
        ),
    ],
)
def test_transforms_that_other_programs_cannot_use_are_found(edit, change, message: str) -> None:
    problems = edit("inference.json", change)
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "image"}, "cast to uint8 by MONAI Deploy"),
        ({"channel_def": {"0": 1}}, "channel_def of pred must map digits to words"),
    ],
)
def test_an_output_that_would_be_spoiled_is_found(edit, changes: dict, message: str) -> None:
    (problem,) = edit("metadata.json", lambda meta: meta["network_data_format"]["outputs"]["pred"].update(changes))
    assert message in problem


def test_channels_that_are_not_the_metadata_s_are_found(edit) -> None:
    (problem,) = edit(
        "metadata.json", lambda meta: meta["network_data_format"]["inputs"]["image"].update(num_channels=3)
    )
    assert "image has 1 channels, metadata 3" in problem


def test_an_evaluation_that_federated_learning_cannot_merge_is_found(edit) -> None:
    def refuse(config: dict[str, Any]) -> None:
        config["initialize"][1] = "$expect_base(@configs, 'evaluate.json', 'inference.json')"

    (problem,) = edit("evaluate.json", refuse)
    assert "as MONAI FL merges them: evaluate.json is an overlay over inference.json" in problem


def test_the_bundle_as_it_is_passes(edit) -> None:
    assert edit("inference.json", lambda config: None) == []


def test_only_a_bundle_that_generates_may_do_without_preprocessing(edit, tmp_path: Path) -> None:
    def generates(config: dict[str, Any]) -> None:
        del config["preprocessing"], config["postprocessing"]
        config["evaluator"]["_target_"] = "medcf.synthesis.Generation"

    assert edit("inference.json", generates) == []
    shutil.rmtree(tmp_path / "diffice")
    with pytest.raises(KeyError, match="preprocessing"):
        edit("inference.json", lambda config: config.pop("preprocessing"))
