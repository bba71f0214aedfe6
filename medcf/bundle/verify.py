# SPDX-License-Identifier: Apache-2.0
"""Checks a bundle like the MONAI model zoo's continuous integration, without internet access.

Checks: required files, metadata against the schema, version and changelog, plain JSON without duplicate keys, the
headings of the page, the list of large files, properties required by the workflows and the zoo, the network's input and
output against the metadata, weights that load as plain tensors and are small enough to commit, requirements of MONAI's
other programs (`medcf.bundle.consumers`), and medcf's own rule that a bundle contains no Python.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.utils import BundleProperty, BundlePropertyConfig

from medcf.bundle.consumers import check_consumers
from medcf.bundle.overlay import config_chain
from medcf.runtime.weights import read_weights

__all__ = ["SCHEMA", "verify_bundle"]

SCHEMA = Path(__file__).parent / "schema" / "meta_schema_20240725.json"
REQUIRED_FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/inference.json",
    "configs/logging.conf",
    "docs/README.md",
    "models/model.pt",
)
MAX_WEIGHTS_BYTES = 8 * 2**20
HASHES = ("md5", "sha1", "sha256", "sha512")
MAX_FILE_BYTES = 25 * 2**20  # the zoo's limit; larger files are omitted and listed in large_files.yml
HEADINGS = ("authors", "tags", "model description", "data", "preprocessing", "performance", "system configuration")
ZOO_IDS = {
    "infer": ("bundle_root", "device", "network_def", "inferer", "output_dir"),
    "train": ("bundle_root", "device", "dataset_dir", "output_dir", "train::trainer::max_epochs", "train::dataset",
              "train::handlers", "validate::evaluator", "validate::handlers", "validate::dataset", "val_interval"),
}  # fmt: skip


def verify_bundle(path: str | Path, *, networks: bool = True) -> list[str]:
    """Check one bundle.

    Args:
        path: folder of the bundle.
        networks: also build the network, run it on the metadata's sizes and check the workflows' properties.

    Returns:
        The problems, one line each; empty if the bundle passes.
    """
    path = Path(path)
    checks: list[Callable[[Path], list[str]]] = [_check_files, _check_json, _check_metadata, _check_weights]
    checks += [_check_page, _check_large_files]
    if networks:
        checks += [_check_properties, _check_network, check_consumers]
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(path)
        except Exception as error:
            name = check.__name__.removeprefix("_").removeprefix("check_")
            problems.append(f"{name}: {type(error).__name__}: {error}")
    return problems


def _check_files(path: Path) -> list[str]:
    problems = [f"{name} is missing" for name in REQUIRED_FILES if not (path / name).is_file()]
    return problems + [f"{file.relative_to(path)}: a bundle must not contain Python" for file in path.rglob("*.py")]


def _check_json(path: Path) -> list[str]:
    problems = []
    for file in sorted((path / "configs").glob("*.json")):
        duplicates: list[str] = []

        def collect(pairs: list[tuple[str, Any]], duplicates: list[str] = duplicates) -> dict[str, Any]:
            keys = [key for key, _ in pairs]
            duplicates += sorted({key for key in keys if keys.count(key) > 1})
            return dict(pairs)

        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=collect)
        problems += [f"configs/{file.name}: the key {key!r} occurs twice" for key in duplicates]
    return problems


def _check_metadata(path: Path) -> list[str]:
    meta_file = path / "configs" / "metadata.json"
    metadata = json.loads(meta_file.read_text(encoding="utf-8"))
    problems = []
    version = metadata.get("version")
    if version not in metadata.get("changelog", {}):
        problems.append(f"metadata: version {version!r} is not in the changelog")
    if metadata.get("bundle") != path.name:
        problems.append(f"metadata: 'bundle' is {metadata.get('bundle')!r}, but the folder is {path.name!r}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            verify_metadata(meta_file=str(meta_file), filepath=str(SCHEMA))
    except Exception as error:
        problems.append(f"metadata: {error}")
    return problems


def _check_weights(path: Path) -> list[str]:
    problems = []
    for file in sorted((path / "models").glob("*.pt")):
        if file.stat().st_size > MAX_WEIGHTS_BYTES:
            problems.append(f"models/{file.name}: {file.stat().st_size} bytes, more than {MAX_WEIGHTS_BYTES}")
        try:
            read_weights(file)
        except ValueError as error:
            problems.append(str(error).replace(str(file), f"models/{file.name}"))
    return problems


def _check_page(path: Path) -> list[str]:
    text = (path / "docs" / "README.md").read_text(encoding="utf-8")
    found = {line.strip("#* ").lower() for line in text.splitlines() if line.startswith("#")}
    return [f"docs/README.md: lacks the heading {heading!r}" for heading in HEADINGS if heading not in found]


def _check_large_files(path: Path) -> list[str]:
    large = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size > MAX_FILE_BYTES]
    problems = [f"{file.relative_to(path)}: more than {MAX_FILE_BYTES} bytes, see large_files.yml" for file in large]
    for file in sorted(path.glob("large_files.*")):
        for entry in ConfigParser.load_config_file(file).get("large_files", [{}]):
            if not {"path", "url"} <= entry.keys() or entry.get("hash_type", "md5") not in HASHES:
                problems.append(f"{file.name}: an entry needs path and url, and a hash_type of {', '.join(HASHES)}")
    return problems


def _check_properties(path: Path) -> list[str]:
    """Check for the properties that MONAI's workflows require, in every config and overlay.

    This is what ``ConfigWorkflow.check_properties`` does, but nothing is built, downloaded or rendered.
    """
    problems = []
    for file in sorted((path / "configs").glob("*.json")):
        chain = config_chain(file)
        kind = {"inference.json": "infer", "train.json": "train"}.get(chain[0].name)
        if kind is None:
            continue
        workflow = _open(chain, kind)
        for name, prop in workflow.properties.items():
            identifier = str(prop[BundlePropertyConfig.ID])
            if not prop[BundleProperty.REQUIRED]:
                if not workflow._check_optional_id(name, prop):
                    problems.append(f"{file.name}: {prop[BundlePropertyConfig.REF_ID]} is not @{identifier}")
            elif identifier not in workflow.parser:
                problems.append(f"{file.name}: lacks {identifier}")
        lacking = [each for each in ZOO_IDS[kind] if each not in workflow.parser]
        problems += [f"{file.name}: lacks {each}" for each in lacking if f"{file.name}: lacks {each}" not in problems]
    return problems


def _open(configs: list[Path], kind: str) -> ConfigWorkflow:
    """Read configs as MONAI does, with macros resolved, but without its warning about unchanged logging."""
    logging.disable(logging.WARNING)
    try:
        workflow = ConfigWorkflow([str(each) for each in configs], logging_file=False, workflow_type=kind)
    finally:
        logging.disable(logging.NOTSET)
    workflow.parser.parse()
    return workflow


def _check_network(path: Path) -> list[str]:
    """Run the network on fake input: the image of the metadata, or what ``latent_data_format`` says of latents."""
    configs = path / "configs"
    parser = ConfigParser()
    parser.read_meta(str(configs / "metadata.json"))
    latents = parser["_meta_"].get("latent_data_format")
    given = {} if latents is None else {"_meta_::network_data_format": latents}
    spatial = parser["_meta_::network_data_format::inputs::image::spatial_shape"]
    if not spatial:
        return ["metadata: network_data_format has no spatial_shape for the image"]
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        n=4,
        p=2,
        any=32,
        device="cpu",
        bundle_root=str(path.resolve()),
        **given,
    )
    return []
