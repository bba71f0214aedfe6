# SPDX-License-Identifier: Apache-2.0
"""What an application runs: the bundle, its folder and its options, from a file, the environment and the task.

Later sources take precedence: ``app.yaml``, the environment (``MEDCF_BUNDLE``, ``MEDCF_SETTINGS``), the orchestrator's
``task.json`` in the input folder, the command line. Options are the ids of the bundle's ``inference.json``, as on its
command line. A task comes with the images, from another program: it gives values, never expressions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medcf
from medcf.bundle.root import bundle_folder
from medcf.inference import Explainer

__all__ = ["bundle_path", "configured", "open_explainer", "task_settings"]

TASK = "task.json"
#: Of every application: objects for an archive, and no bar in its log.
DEFAULTS = {"output_format": "dicom", "writers#panel": None, "progress": False}

_DEFAULT_BUNDLE = "diffice"
_CODE = ("$", "@", "%")  # how an expression, a reference and a macro of a config begin


def configured(
    config: str | Path | None, environment: Mapping[str, str], input_path: Path, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Collect what to run.

    Args:
        config: an ``app.yaml``, whose section ``medcf`` has ``bundle`` and ``settings``; None reads none.
        environment: the process's.
        input_path: folder of the images, maybe with a ``task.json``.
        given: from the command line: ``bundle``, and options.

    Returns:
        The bundle, and its options.

    Raises:
        ValueError: if a source cannot be parsed, or gives an expression where only values are taken.
    """
    sources = [_of_file(config), _of_environment(environment), task_settings(input_path), dict(given)]
    settings = {key: value for source in sources for key, value in source.items() if value is not None}
    return str(settings.pop("bundle", _DEFAULT_BUNDLE)), settings


def task_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of an orchestrator's task: ``process``, ``settings`` in ``task.json``.

    If several modules run after one another, ``process`` is a list: each takes the settings meant for this module by
    name, the only ones that hold a bundle, or the first.

    Raises:
        ValueError: if the file is not JSON, or a setting is an expression.
    """
    path = folder / TASK
    if not path.is_file():
        return {}
    task = _parsed(path.read_text(encoding="utf-8"), TASK)
    process = task.get("process") if isinstance(task, Mapping) else None
    steps = [step for step in (process if isinstance(process, list) else [process]) if isinstance(step, Mapping)]
    ours = [step for step in steps if "medcf" in str(step.get("module_name", "")).lower()] or steps
    settings = _only_values((ours[0].get("settings") if ours else None) or {}, TASK)
    # a bundle's configs are code, too: a task must not name a folder, which may have come with it
    if os.path.basename(bundle := str(settings.get("bundle", "any"))) != bundle:
        raise ValueError(f"{TASK}: the setting bundle must be a name, not a folder.")
    return settings


def bundle_path(name: str, models: str | Path | None = None) -> Path:
    """Find a bundle.

    Args:
        name: name of a bundle, or its folder, with a slash: ``./mine``.
        models: folder of models of a MONAI Application Package: holds the bundle's folder, or is it. None, or one
            without this bundle, takes the bundle that medcf brings.

    Raises:
        FileNotFoundError: if there is none; lists the known ones.
    """
    places = [] if models is None else [Path(models) / name, Path(models)]
    for place in [*places, *([Path(name)] if os.sep in name else [])]:
        if (place / "configs" / "inference.json").is_file():
            return place
    return bundle_folder(name)


def open_explainer(bundle: str | Path, models: str | Path | None = None, **settings: Any) -> Explainer:
    """Load a bundle for an application: its results are DICOM objects.

    Args:
        bundle: name or folder of the bundle.
        models: see `bundle_path`.
        settings: options of the bundle.

    Raises:
        ValueError: if an option does not exist; names the closest ones.
    """
    return medcf.load(bundle_path(str(bundle), models), **{**DEFAULTS, **settings})


def _of_file(config: str | Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    import yaml

    content = yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
    section = content.get("medcf") or {}
    return {"bundle": section.get("bundle"), **(section.get("settings") or {})}


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    settings = _parsed(environment.get("MEDCF_SETTINGS") or "{}", "MEDCF_SETTINGS")
    return {"bundle": environment.get("MEDCF_BUNDLE") or None, **_only_values(settings, "MEDCF_SETTINGS")}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}).") from error


def _only_values(settings: Any, where: str) -> dict[str, Any]:
    """Refuse what a config would execute."""
    if not isinstance(settings, Mapping):
        raise ValueError(f'{where} must give its settings as an object, such as {{"target": 1}}.')
    for key, value in settings.items():
        if any(part.startswith("_") for part in str(key).replace("::", "#").split("#")) or _is_code(value):
            raise ValueError(f"{where}: the setting {key} is code; only values are taken. Put it into the bundle.")
    return {str(key): value for key, value in settings.items()}


def _is_code(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith(_CODE)
    if isinstance(value, Mapping):
        return any(str(key).startswith("_") or _is_code(each) for key, each in value.items())
    return isinstance(value, Sequence) and any(map(_is_code, value))
