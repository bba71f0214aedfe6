# SPDX-License-Identifier: Apache-2.0
"""The folder for ``docker build``: complete, and only medcf's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from medcf.deploy.package import write_package


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package("valdmd", tmp_path_factory.mktemp("package") / "map", {"target": 2})


def test_everything_that_the_dockerfile_copies_is_there(folder: Path) -> None:
    lines = (folder / "Dockerfile").read_text(encoding="utf-8")
    copied = dict(re.findall(r"^COPY (\S+) (\S+)$", lines, flags=re.MULTILINE))
    assert set(copied) == {"requirements.txt", "app", "models", "app.yaml", "manifests"}
    assert all((folder / name).exists() for name in copied)
    assert re.search(r"^FROM nvidia/cuda:13\.\d+\.\d+-runtime-", lines, flags=re.MULTILINE)
    assert re.search(r"^USER 1000:1000$", lines, flags=re.MULTILINE)
    assert "COPY manifests /etc/monai" in lines
    assert "COPY manifests /etc/holoscan" in lines


def test_the_manifests_say_how_it_runs_and_what_it_needs(folder: Path) -> None:
    app, package = (json.loads((folder / "manifests" / f"{name}.json").read_text()) for name in ("app", "pkg"))
    assert set(app) == {
        *("apiVersion", "command", "environment", "input", "liveness", "output", "readiness", "sdk", "sdkVersion"),
        *("timeout", "version", "workingDirectory"),
    }
    assert (app["sdk"], app["sdkVersion"]) == ("monai-deploy", "4.0.0")
    dockerfile = (folder / "Dockerfile").read_text(encoding="utf-8")
    assert all(f"{name}={value}" in dockerfile for name, value in app["environment"].items())
    assert package["resources"]["gpu"] == 1
    assert package["models"] == {"valdmd": "/opt/holoscan/models/valdmd"}
    config = yaml.safe_load((folder / "app.yaml").read_text(encoding="utf-8"))
    assert config["medcf"] == {"bundle": "valdmd", "settings": {"target": 2}}
    assert config["resources"] == package["resources"]


def test_it_requires_all_that_the_bundle_uses(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {Requirement(line).name.lower() for line in lines}
    assert {"torch", "monai", "monai-deploy-app-sdk", "nvidia-cuda-runtime", "highdicom", "transformers"} <= names
    assert not {"pytest", "ruff", "medcf"} & names


def test_its_medcf_runs_by_itself_and_finds_its_bundle(folder: Path, tmp_path: Path) -> None:
    assert not list(folder.rglob("__pycache__"))
    models = folder / "models"
    code = "import medcf; from medcf.deploy.settings import bundle_path as b; "
    code += f"print(medcf.__file__, b('valdmd', {str(models)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(folder / "app"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(folder / "app" / "medcf" / "__init__.py"), str(models / "valdmd")]


def test_files_of_others_stay(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "Dockerfile").write_text("FROM scratch")
    with pytest.raises(FileExistsError, match="was not made by medcf"):
        write_package("diffice", tmp_path / "map")
    assert (tmp_path / "map" / "Dockerfile").read_text() == "FROM scratch"
    write_package("valdmd", folder, {"target": 2})  # its own are replaced
