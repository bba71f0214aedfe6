# SPDX-License-Identifier: Apache-2.0
"""The folder that ``docker build`` turns into a MONAI Application Package: code, bundle, manifests, Dockerfile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

import medcf
from medcf.deploy.settings import bundle_path
from medcf.runtime.owned import fill_folder

__all__ = ["COMMAND", "write_package"]

COMMAND = "python3 -m medcf.deploy"
_SDK = "4.0.0"
#: CUDA 13, as the SDK's holoscan-cu13; Python 3.12.
_BASE = "nvidia/cuda:13.0.2-runtime-ubuntu24.04"
_APP, _MODELS, _STATE = "/opt/holoscan/app", "/opt/holoscan/models", "/var/holoscan"
_EXTRAS = ("deploy", "dicom")
_RESOURCES = {"cpu": 2, "gpu": 1, "memory": "8Gi", "gpuMemory": "4Gi"}
_LEFT_OUT = ("__pycache__", "_bundles", "*.pyc")

_ENVIRONMENT = {
    "HOLOSCAN_APPLICATION": _APP,
    "HOLOSCAN_CONFIG_PATH": f"{_STATE}/app.yaml",
    "HOLOSCAN_INPUT_PATH": f"{_STATE}/input",
    "HOLOSCAN_OUTPUT_PATH": f"{_STATE}/output",
    "HOLOSCAN_MODEL_PATH": _MODELS,
    "HOLOSCAN_APP_MANIFEST_PATH": "/etc/holoscan/app.json",
    "HOLOSCAN_PKG_MANIFEST_PATH": "/etc/holoscan/pkg.json",
    "PYTHONPATH": _APP,
    # an ordinary user without a home folder writes nowhere but to the output and to /tmp
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONSAFEPATH": "1",
    "CUPY_CACHE_DIR": "/tmp/cupy",  # made when the SDK is imported
    "MPLCONFIGDIR": "/tmp/matplotlib",
    "HF_HUB_OFFLINE": "1",
}

_DOCKERFILE = """\
# Written by python -m medcf.deploy package; build it in this folder: docker build --tag {bundle} .
FROM {base}

RUN apt-get update \\
    && apt-get install --yes --no-install-recommends python3 python3-venv libgl1 \\
    && rm -rf /var/lib/apt/lists/* \\
    && python3 -m venv /opt/venv
ENV PATH="/opt/venv/bin:$PATH"

COPY requirements.txt /opt/holoscan/requirements.txt
RUN python3 -m pip install --no-cache-dir --requirement /opt/holoscan/requirements.txt

COPY app {app}
COPY models {models}
COPY app.yaml {state}/app.yaml
COPY manifests /etc/holoscan
# where mercure and older readers look
COPY manifests /etc/monai

{environment}

RUN mkdir -p {state}/input {state}/output && chmod 0777 {state}/output
LABEL base="{base}" org.opencontainers.image.title="{bundle}" org.opencontainers.image.version="{version}" \\
    org.opencontainers.image.licenses="Apache-2.0" tag="{bundle}:{version}"
WORKDIR {state}
USER 1000:1000
ENTRYPOINT ["python3", "-m", "medcf.deploy"]
"""


def write_package(bundle: str, output: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write the folder of an application for one bundle, complete for ``docker build``.

    It holds the medcf that runs this, because an unreleased one cannot be installed from anywhere, and requires the
    versions installed beside it.

    Args:
        bundle: name or folder of the bundle.
        output: folder; files that this function wrote there before are replaced, all others stay.
        settings: options of the bundle for ``app.yaml``, where they can be changed before building.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: if the bundle does not exist.
        FileExistsError: if someone else's file is in the way.
    """
    source = bundle_path(bundle)
    metadata = json.loads((source / "configs" / "metadata.json").read_text(encoding="utf-8"))
    name, release = str(metadata["bundle"]), str(metadata["version"])
    ignore = shutil.ignore_patterns(*_LEFT_OUT)

    def write(folder: Path) -> None:
        shutil.copytree(Path(medcf.__file__).parent, folder / "app" / "medcf", ignore=ignore)
        shutil.copytree(source, folder / "models" / name, ignore=ignore)
        requirements = _requirements(metadata.get("required_packages_version", {}))
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        (folder / "app.yaml").write_text(_app_yaml(name, release, settings or {}), encoding="utf-8")
        environment = "ENV " + " \\\n    ".join(f"{key}={value}" for key, value in _ENVIRONMENT.items())
        known = {"base": _BASE, "bundle": name, "version": release, "environment": environment}
        dockerfile = _DOCKERFILE.format(app=_APP, models=_MODELS, state=_STATE, **known)
        (folder / "Dockerfile").write_text(dockerfile, encoding="utf-8")
        (folder / "manifests").mkdir()
        for file, content in (("app.json", _app_manifest(release)), ("pkg.json", _package_manifest(name, release))):
            (folder / "manifests" / file).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")

    fill_folder(Path(output), write)
    return Path(output)


def _app_manifest(release: str) -> dict[str, Any]:
    """Return ``app.json``: how to run the application."""
    return {
        "apiVersion": "1.0.0",
        "command": COMMAND,
        "environment": _ENVIRONMENT,
        "input": {"formats": [], "path": _ENVIRONMENT["HOLOSCAN_INPUT_PATH"]},
        "output": {"format": {"data": "dicom"}, "path": _ENVIRONMENT["HOLOSCAN_OUTPUT_PATH"]},
        "liveness": None,
        "readiness": None,
        "sdk": "monai-deploy",
        "sdkVersion": _SDK,
        "timeout": 0,
        "version": release,
        "workingDirectory": _STATE,
    }


def _package_manifest(name: str, release: str) -> dict[str, Any]:
    """Return ``pkg.json``: what is in the package, and what it needs."""
    return {
        "apiVersion": "1.0.0",
        "applicationRoot": _APP,
        "modelRoot": _MODELS,
        "models": {name: f"{_MODELS}/{name}"},
        "resources": _RESOURCES,
        "platformConfig": "dgpu",
        "version": release,
    }


def _app_yaml(name: str, release: str, settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(
        {
            "application": {
                "title": f"medcf {name}",
                "version": release,
                "inputFormats": ["file"],
                "outputFormats": ["dicom"],
            },
            "resources": _RESOURCES,
            "medcf": {"bundle": name, "settings": dict(settings)},
        },
        sort_keys=False,
    )


def _requirements(of_bundle: Mapping[str, str]) -> list[str]:
    """List what the application needs, in the versions that are installed here, or that the bundle was tested with."""
    asked = map(Requirement, requires("medcf") or [])
    needed = [each for each in asked if each.marker is None or any(each.marker.evaluate({"extra": x}) for x in _EXTRAS)]
    lines = {each.name.lower(): _pinned(each) for each in needed}
    for name, tested in of_bundle.items():
        if name != "medcf":
            lines.setdefault(name.lower(), f"{name}=={tested}")
    return [lines[name] for name in sorted(lines)]


def _pinned(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    try:
        return f"{requirement.name}{extras}=={version(requirement.name).partition('+')[0]}"
    except PackageNotFoundError:
        return f"{requirement.name}{extras}{requirement.specifier}"
