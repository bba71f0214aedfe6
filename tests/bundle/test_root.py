# SPDX-License-Identifier: Apache-2.0
"""A bundle is the folder of the config that is evaluated, or what a host put on the path; nothing is guessed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from medcf.bundle import find_bundle_root
from medcf.bundle.root import bundle_folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "elsewhere" / "renamed" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text(json.dumps({"bundle": "toy"}))
    config = {"imports": ["$from medcf.bundle import find_bundle_root"], "root": "$find_bundle_root('toy')"}
    (configs / "inference.json").write_text(json.dumps(config | {"run": ["$print(@root)"]}))
    return configs.parent


def open_workflow(bundle: Path) -> ConfigWorkflow:
    configs = bundle / "configs"
    return ConfigWorkflow(
        config_file=str(configs / "inference.json"), meta_file=str(configs / "metadata.json"), logging_file=False
    )


def test_the_bundle_of_the_workflow_that_evaluates_the_config_is_taken(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = open_workflow(bundle)
    workflow.run()
    assert workflow.parser.get_parsed_content("root") == str(bundle)


def test_the_workflow_comes_before_the_path(bundle, tmp_path, monkeypatch):
    other = tmp_path / "toy" / "configs"
    other.mkdir(parents=True)
    (other / "metadata.json").write_text(json.dumps({"bundle": "toy"}))
    monkeypatch.syspath_prepend(str(other.parent))
    workflow = open_workflow(bundle)
    workflow.run()
    assert workflow.parser.get_parsed_content("root") == str(bundle)


def test_a_host_that_puts_the_bundle_on_the_path_is_understood(bundle, monkeypatch):
    monkeypatch.syspath_prepend(str(bundle))
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    assert parser.get_parsed_content("root") == str(bundle)


@pytest.mark.parametrize("place", ["renamed", "renamed/configs"])
def test_without_anything_the_error_says_how_to_name_it(bundle, place, monkeypatch):
    monkeypatch.chdir(bundle.parent / place)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry and not (Path(entry) / "configs").is_dir()])
    monkeypatch.setenv("MEDCF_BUNDLE_ROOT", str(bundle))
    for name in ("toy", "diffice"):
        with pytest.raises(FileNotFoundError, match=rf"bundle '{name}' is unknown.*bundle_root.*--bundle_root FOLDER"):
            find_bundle_root(name)


def test_a_bundle_of_another_name_is_not_taken_for_it(bundle, monkeypatch):
    monkeypatch.syspath_prepend(str(bundle))
    with pytest.raises(FileNotFoundError, match="bundle_root"):
        find_bundle_root("other")


def test_the_package_knows_its_own_bundles_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (bundle_folder("diffice") / "configs" / "metadata.json").is_file()
    with pytest.raises(FileNotFoundError, match=r"'nobody' is not .*controlcg, diffice"):
        bundle_folder("nobody")
