# SPDX-License-Identifier: Apache-2.0
"""What an application runs, by file, environment, task and command line; code is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medcf.bundle.root import bundle_folder
from medcf.deploy.settings import bundle_path, configured, open_explainer, task_settings


def task(folder: Path, process: object) -> Path:
    (folder / "task.json").write_text(json.dumps({"id": "1", "process": process}), encoding="utf-8")
    return folder


def test_later_sources_take_precedence(tmp_path: Path) -> None:
    config = tmp_path / "app.yaml"
    config.write_text("medcf: {bundle: valdmd, settings: {seed: 1, seeds: 1, target: 1, method: sdedit}}")
    environment = {"MEDCF_SETTINGS": '{"seed": 2, "seeds": 2, "target": 2}', "MEDCF_BUNDLE": "controlcg"}
    task(tmp_path, {"settings": {"seed": 3, "seeds": 3}})
    bundle, settings = configured(config, environment, tmp_path, {"bundle": None, "seed": 4})
    assert bundle == "controlcg"
    assert settings == {"seed": 4, "seeds": 3, "target": 2, "method": "sdedit"}
    assert configured(None, {}, tmp_path / "none", {}) == ("diffice", {})


def test_of_several_modules_the_one_named_after_medcf_is_asked(tmp_path: Path) -> None:
    steps = [{"module_name": "other", "settings": {"x": 1}}, {"module_name": "medcf-us", "settings": {"target": 0}}]
    assert task_settings(task(tmp_path, steps)) == {"target": 0}
    assert task_settings(task(tmp_path, None)) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"target": "$__import__('os').system('true')"},
        {"inferer#_target_": "subprocess.run"},
        {"writers": {"panel": {"_target_": "os.system"}}},
        {"class_names": ["a", "$1"]},
        {"target": "@seed"},
    ],
)
def test_a_task_gives_no_code(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ValueError, match=r"task\.json: the setting .* is code"):
        task_settings(task(tmp_path, {"settings": settings}))
    with pytest.raises(ValueError, match="MEDCF_SETTINGS: the setting"):
        configured(None, {"MEDCF_SETTINGS": json.dumps(settings)}, tmp_path / "none", {})


@pytest.mark.parametrize("bundle", ["/tmp/data", "./data", "../data", "data/"])
def test_a_task_cannot_bring_a_bundle(tmp_path: Path, bundle: str) -> None:
    with pytest.raises(ValueError, match="must be a name, not a folder"):
        task_settings(task(tmp_path, {"settings": {"bundle": bundle}}))


def test_a_bundle_in_the_working_folder_takes_a_slash(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data" / "configs").mkdir(parents=True)
    (tmp_path / "data" / "configs" / "inference.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        bundle_path("data")
    assert bundle_path("./data") == Path("data")


def test_a_bundle_is_found_in_the_folder_of_models_or_comes_with_medcf(tmp_path: Path) -> None:
    (tmp_path / "mine" / "configs").mkdir(parents=True)
    (tmp_path / "mine" / "configs" / "inference.json").write_text("{}")
    assert bundle_path("mine", tmp_path) == tmp_path / "mine"
    assert bundle_path("mine", tmp_path / "mine") == tmp_path / "mine"
    assert bundle_path("diffice", tmp_path) == bundle_folder("diffice")
    with pytest.raises(FileNotFoundError, match="shipped with medcf"):
        bundle_path("nothing", tmp_path)


def test_a_typo_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean target"):
        open_explainer("diffice", tagret=1)
