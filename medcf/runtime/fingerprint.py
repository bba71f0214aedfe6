# SPDX-License-Identifier: Apache-2.0
"""Hashes of everything a run's results depend on: the config, the weights and the inputs."""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from monai.bundle import ConfigParser

if TYPE_CHECKING:
    from medcf.data import Case

__all__ = [
    "INDIFFERENT_KEYS",
    "config_fingerprint",
    "describe_changes",
    "find_caller",
    "flat_options",
    "hash_inputs",
    "referred",
    "running_config",
    "sha256",
]

INDIFFERENT_KEYS = frozenset(
    {
        "_meta_", "configs", "imports", "initialize", "run", "finalize", "bundle_root", "dataset_dir", "datalist",
        "output_dir", "models_dir", "device", "batch_size", "memory_budget", "num_workers", "num_threads", "overwrite",
        "progress", "panels", "weights", "handlers", "run_folder", "writers", "explainer", "listing", "case_list",
        "split", "max_pixels", "max_voxels", "adapter", "backend", "onnx_file",
    }
)  # fmt: skip
"""Top-level config ids about location and speed, not content; weights and inputs are hashed by their content."""

Caller = TypeVar("Caller")

_PIXEL_SUFFIXES = (".img", ".raw", ".zraw", ".gz")
_SHOWN = 3  # number of changed inputs or weights that an error names


def sha256(path: str | Path) -> str:
    """Hash a file, or a folder by the names and contents of its files.

    Args:
        path: an existing file or folder.

    Returns:
        64 hexadecimal digits.
    """
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        for name, member in sorted((member.relative_to(path).as_posix(), member) for member in path.rglob("*")):
            if member.is_file():
                digest.update(f"{name}\0{sha256(member)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_inputs(cases: Iterable[Case]) -> dict[str, str]:
    """Hash the sources of each case: its file, or the files of its series, and its mask.

    Returns:
        Case id to SHA-256.
    """
    hashes: dict[Path, str] = {}  # several cases may be frames of the same file
    digests = {}
    for case in cases:
        files = list(case.files)
        if files[0].suffix.lower() in (".hdr", ".mhd", ".nhdr"):  # the pixels are in files of their own
            pixels = sorted(files[0].parent.glob(f"{glob.escape(files[0].stem)}.*"))
            files += [file for file in pixels if file != files[0] and file.suffix.lower() in _PIXEL_SUFFIXES]
        spacing = case.columns.get("spacing_mm")
        if len(files) > 1 or case.mask or spacing:
            # in order: a mask may have the same name as its image, in another folder
            lines = [sha256(file) if file else "" for file in (*files, case.mask)]
            lines += [str(spacing)] if spacing else []
            digests[case.id] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            continue
        if files[0] not in hashes:
            hashes[files[0]] = sha256(files[0])
        digests[case.id] = hashes[files[0]]
    return digests


def running_config(section: str | None = None) -> dict[str, Any]:
    """Return the raw config being evaluated, including command-line overrides.

    Call it from a config expression (``"config": "$running_config()"``). MONAI's expressions have no name for the
    config itself, so it is taken from the ``ConfigParser`` on the call stack.

    Args:
        section: a top-level id; only what it refers to, directly or not, is returned. None returns everything.

    Raises:
        RuntimeError: if no config is being evaluated.
    """
    parser = find_caller(ConfigParser)
    if parser is None:
        raise RuntimeError("running_config() must be called from an expression of a MONAI config.")
    config = json.loads(json.dumps(parser.get(), default=str))
    return config if section is None else referred(config, section)


def referred(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the sections of a raw config to which one refers by ``@`` or ``%``, directly or not, and that one.

    Example:
        >>> referred({"a": "$@b#c + 1", "b": {"c": 2}, "d": "@a"}, "a")
        {'a': '$@b#c + 1', 'b': {'c': 2}}
    """
    found, waiting = {}, [section]
    while waiting:
        name = waiting.pop()
        if name in config and name not in found:
            found[name] = config[name]
            waiting += re.findall(r"[@%](\w+)", json.dumps(config[name]))
    return {name: config[name] for name in config if name in found}


def find_caller(kind: type[Caller]) -> Caller | None:
    """Return the nearest object of a type with a running method; None if there is none."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), kind):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def config_fingerprint(config: Mapping[str, Any], indifferent: Iterable[str] = INDIFFERENT_KEYS) -> dict[str, str]:
    """Hash each top-level section of a config that affects results.

    Args:
        config: raw config, as `running_config` returns it.
        indifferent: ids to leave out.

    Returns:
        Section name to SHA-256 of its canonical JSON (an override of 1.0 equals a default of 1).
    """
    left_out = set(indifferent)
    return {
        str(key): hashlib.sha256(json.dumps(_canonical(value), sort_keys=True).encode()).hexdigest()
        for key, value in sorted(config.items())
        if key not in left_out
    }


def _canonical(value: Any) -> Any:
    """Make equal settings produce equal text: integral floats become integers, tuples become lists."""
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def flat_options(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List every value of a nested config with its id, such as ``network_def#channels``; lists count as values.

    Args:
        config: raw config, as `running_config` returns it.
        prefix: id of the section, with a trailing ``#``.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat_options(value, f"{prefix}{name}#")
        else:
            yield f"{prefix}{name}", value


def describe_changes(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Describe which parts of a fingerprint differ.

    Args:
        before: ``{"config": {...}, "weights": {...}, "inputs": {...}}``, each mapping names to hashes.
        after: the same for the current state.

    Returns:
        One line for each kind that changed, such as ``"input changed: a.png"``; empty if nothing did.

    Example:
        >>> describe_changes({"weights": {"model.pt": "1"}}, {"weights": {"model.pt": "2"}})
        ['weights changed: model.pt']
    """
    lines = []
    for kind in dict.fromkeys([*before, *after]):
        old, new = before.get(kind, {}), after.get(kind, {})
        groups = {
            "changed": [name for name in old if name in new and old[name] != new[name]],
            "missing now": [name for name in old if name not in new],
            "new": [name for name in new if name not in old],
        }
        for what, names in groups.items():
            if names:
                rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{kind} {what}: {', '.join(sorted(names)[:_SHOWN])}{rest}")
    return lines
