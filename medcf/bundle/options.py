# SPDX-License-Identifier: Apache-2.0
"""Refuse options that would change nothing: MONAI takes ``--typo 1`` and ``--known None`` and runs with the default."""

from __future__ import annotations

import re
from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from medcf.bundle.command_line import arguments, config_files

__all__ = ["check_options", "unknown_options", "unused_options"]

# Parameters of `monai.bundle run` itself, which are not ids of a config.
RUN_ARGUMENTS = frozenset(
    {"run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"}
)
# Numbers in a config that may also be a word: the method reads it.
WORDS = frozenset({"target"})


def check_options(argv: list[str] | None = None) -> None:
    """Check the command line against the configs that it names.

    To be the first expression of ``initialize`` in a config. Outside ``python -m monai.bundle run`` it does nothing.

    Args:
        argv: the command line; defaults to ``sys.argv``.

    Raises:
        ValueError: an option is no id of the configs (the message names it and the nearest that exist) or is read by
            nothing; its value is None, which MONAI drops, "false", which is text and would count as true, or text in
            place of a number.
    """
    options = arguments(argv)
    files = config_files(argv)
    if not options or not files:
        return
    if args_file := options.get("args_file"):
        options = {**ConfigParser.load_config_file(args_file), **options}
    config = ConfigParser.load_config_files(files)
    options = {key: value for key, value in options.items() if key not in RUN_ARGUMENTS}
    problems = unknown_options(list(options), config) + unused_options(options, config)
    for key, value in options.items():
        problems += _bad_value(key, value, reduce(_child, _parts(key), config))
    if problems:
        raise ValueError("\n".join(problems))


def unknown_options(options: list[str], config: dict[str, Any]) -> list[str]:
    """Describe each option that would not change anything in ``config``.

    An id may be nested (``trainer::max_epochs`` or ``trainer#max_epochs``). Its last part may be new only where a
    component takes arguments, that is beside a ``_target_``.

    Args:
        options: ids from the command line, without dashes.
        config: the merged config.

    Returns:
        One message an unknown option; empty when all are known.

    Example:
        >>> unknown_options(["tagret"], {"target": 1})
        ["Unknown option --tagret. Did you mean --target? The config's options are: target."]
    """
    problems = []
    for option in options:
        node: Any = config
        prefix = ""
        for part in _parts(option):
            child = _child(node, part)
            if child is _MISSING:
                problems.append(_message(option, prefix, part, node))
                break
            node = child
            prefix += f"{part}::"
    return problems


def unused_options(options: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Describe each option that ``config`` has and nothing reads, such as one of the base that an overlay replaced.

    Args:
        options: ids from the command line, without dashes, and their values.
        config: the merged config.

    Returns:
        One message an option.

    Example:
        >>> unused_options({"a": 1, "b": 2}, {"a": 0, "b": 0, "run": "$print(@b)"})
        ['Option --a changes nothing: no part of this command reads it.']
    """
    if "run" not in config:  # by another name, perhaps
        return []
    parser = ConfigParser(deepcopy(config))
    parser.resolve_macro_and_relative_ids()
    used = {"bundle_root", *re.findall(r"'%(\w+)", str(config))}  # tools give the root to every bundle
    waiting = {"imports", "initialize", "run", "finalize", *_references(list(options.values()))}
    while waiting:
        name = waiting.pop()
        used.add(name)
        waiting |= _references(parser.get(name)) - used
    return [
        f"Option --{option} changes nothing: no part of this command reads it."
        for option in options
        if (name := _parts(option)[0]) in config and name not in used
    ]


_MISSING = object()


def _references(content: Any) -> set[str]:
    """Name the top-level ids that a part of a config refers to."""
    return {ReferenceResolver.split_id(each)[0] for each in ReferenceResolver.find_refs_in_config(content, "")} - {""}


def _bad_value(key: str, value: Any, held: Any) -> list[str]:
    """Describe a value that MONAI would drop or misread in the place of what the config holds."""
    problems = []
    if value is None:
        problems.append(
            f"MONAI ignores --{key} None: to set null, write it into a JSON file and name that after the config "
            "in --config_file."
        )
    if isinstance(value, str) and value.lower() == "false":
        problems.append(f"--{key} {value} is read as text, which counts as true: write --{key} False.")
    number = isinstance(held, int | float) and not isinstance(held, bool) and key not in WORDS
    if number and isinstance(value, str) and not value.startswith(("$", "@", "%")):
        problems.append(f"--{key} {value} is text, and the config holds a number there ({held}): give a number.")
    return problems


def _parts(option: str) -> list[str]:
    return option.lstrip("+").replace("#", "::").split("::")


def _child(node: Any, part: str) -> Any:
    """Return what ``part`` names below ``node``, None for a new argument of a component, or the missing mark."""
    if isinstance(node, dict):
        if part in node:
            return node[part]
        return None if "_target_" in node else _MISSING
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    return _MISSING


def _message(option: str, prefix: str, part: str, node: Any) -> str:
    known = sorted(str(key) for key in node if not str(key).startswith("_")) if isinstance(node, dict) else []
    near = get_close_matches(part, known, n=1)
    hint = f" Did you mean --{prefix}{near[0]}?" if near else ""
    return f"Unknown option --{option}.{hint} The config's options are: {', '.join(prefix + key for key in known)}."
