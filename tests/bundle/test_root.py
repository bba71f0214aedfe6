# SPDX-License-Identifier: Apache-2.0
"""A bundle is found from wherever its config is started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from medcf.bundle import find_bundle_root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "elsewhere" / "renamed" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text(json.dumps({"bundle": "toy"}))
    (configs / "inference.json").write_text("{}")
    return configs.parent


def test_the_bundle_of_the_config_on_the_command_line_comes_first(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = os.path.join("x", "monai", "bundle", "__main__.py")
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", str(bundle / "configs" / "inference.json")])
    assert find_bundle_root("toy") == str(bundle)


@pytest.mark.parametrize("place", ["renamed", "renamed/configs"])
def test_it_is_found_from_inside_the_bundle(bundle: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent / place)
    assert find_bundle_root("toy") == str(bundle)


def test_the_environment_names_a_bundle_or_the_folder_above_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCF_BUNDLE_ROOT", str(bundle))
    assert find_bundle_root("toy") == str(bundle)
    bundle.rename(bundle.with_name("toy"))
    monkeypatch.setenv("MEDCF_BUNDLE_ROOT", str(bundle.parent))
    assert find_bundle_root("toy") == str(bundle.with_name("toy"))


def test_the_package_finds_its_own_bundle_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (Path(find_bundle_root("diffice")) / "configs" / "metadata.json").is_file()


def test_a_bundle_of_another_name_is_not_taken_for_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    with pytest.raises(FileNotFoundError, match="MEDCF_BUNDLE_ROOT"):
        find_bundle_root("other")
