# SPDX-License-Identifier: Apache-2.0
"""The bundle check finds what the model zoo's checks would find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from medcf.bundle import verify_bundle

BUNDLE = Path(__file__).parents[2] / "bundles" / "diffice"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    target = tmp_path / "diffice"
    shutil.copytree(BUNDLE, target)
    return target


def edit_metadata(bundle: Path, **changes: object) -> None:
    file = bundle / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata.update(changes)
    file.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def problems(bundle: Path) -> str:
    return "\n".join(verify_bundle(bundle, networks=False))


def test_the_untouched_bundle_passes(copy: Path) -> None:
    assert problems(copy) == ""


def test_a_missing_licence_is_found(copy: Path) -> None:
    (copy / "LICENSE").unlink()
    assert "LICENSE is missing" in problems(copy)


def test_metadata_that_breaks_the_schema_is_found(copy: Path) -> None:
    edit_metadata(copy, authors=None)
    assert "authors" in problems(copy)


def test_a_version_without_change_log_is_found(copy: Path) -> None:
    edit_metadata(copy, version="9.9.9")
    assert "9.9.9" in problems(copy)


def test_a_key_that_occurs_twice_is_found(copy: Path) -> None:
    (copy / "configs" / "extra.json").write_text('{"a": 1, "a": 2}')
    assert "'a' occurs twice" in problems(copy)


def test_a_page_without_the_zoo_s_headings_is_found(copy: Path) -> None:
    page = copy / "docs" / "README.md"
    page.write_text(page.read_text().replace("## Tags", "## Words"))
    assert problems(copy) == "docs/README.md: lacks the heading 'tags'"


def test_a_file_that_is_too_large_and_a_wrong_list_of_large_files_are_found(copy: Path) -> None:
    with (copy / "models" / "large.onnx").open("wb") as file:
        file.truncate(26 * 2**20)
    (copy / "large_files.yml").write_text(
        "large_files:\n- {path: a.pt, url: x, hash_type: sha256}\n- {path: b.pt}\n- {path: c, url: d, hash_type: crc}\n"
    )
    found = problems(copy).splitlines()
    assert [line.split(":")[0] for line in found] == ["models/large.onnx", "large_files.yml", "large_files.yml"]


def test_python_in_a_bundle_is_found(copy: Path) -> None:
    (copy / "scripts.py").write_text("")
    assert "must not contain Python" in problems(copy)


def test_weights_that_are_too_large_or_not_finite_are_found(copy: Path) -> None:
    torch.save({"weight": torch.zeros(3 * 2**20)}, copy / "models" / "large.pt")
    torch.save({"weight": torch.tensor([float("nan")])}, copy / "models" / "nan.pt")
    found = problems(copy)
    assert "large.pt" in found
    assert "nan.pt holds values that are not finite" in found


def test_a_pickle_with_code_is_refused(copy: Path) -> None:
    torch.save(Path("x"), copy / "models" / "code.pt")
    assert "models/code.pt is not a readable weights file: it holds more than tensors" in problems(copy)


@pytest.mark.parametrize(
    ("config", "identifier"),
    [
        ("inference.json", "inferer"),
        ("inference.json", "output_dir"),
        ("train.json", "train::trainer"),
        ("train.json", "val_interval"),
    ],
)
def test_a_config_that_lacks_what_a_workflow_requires_is_found(copy: Path, config: str, identifier: str) -> None:
    file = copy / "configs" / config
    content = json.loads(file.read_text())
    *parents, last = identifier.split("::")
    section = content
    for parent in parents:
        section = section[parent]
    del section[last]
    file.write_text(json.dumps(content))
    assert f"{config}: lacks {identifier}" in verify_bundle(copy)


def test_a_network_that_does_not_fit_the_metadata_is_found(copy: Path) -> None:
    file = copy / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 3
    file.write_text(json.dumps(metadata))
    assert any(line.startswith("network") for line in verify_bundle(copy))
