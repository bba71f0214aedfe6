# SPDX-License-Identifier: Apache-2.0
"""Refuses options without effect: MONAI accepts ``--typo 1`` and ``--known None`` and runs with the default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import reduce
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.utils import ensure_tuple

from medcf.bundle.command_line import arguments, config_files
from medcf.inferers import Method
from medcf.inferers.selection import check_method_options, method_arguments
from medcf.registry import METHODS, load_plugins
from medcf.runtime.choices import did_you_mean
from medcf.runtime.fingerprint import find_caller

__all__ = ["check_options", "method_problems", "unknown_options", "unused_options"]

# Parameters of `monai.bundle run` itself, which are not config ids.
RUN_ARGUMENTS = frozenset(
    {"run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"}
)
# Numeric options in a config that may also be a word, which the method interprets.
WORDS = frozenset({"target"})
# Ids that MONAI itself adds to a workflow's config, including its MLflow tracking.
OF_MONAI = frozenset(
    {"_meta_", "save_execute_config", "tracking_uri", "experiment_name", "run_name", "is_not_rank0", "trainer",
     "validator", "evaluator"}
)  # fmt: skip


def check_options(argv: list[str] | None = None) -> None:
    """Check the command line, or the options given to ``ConfigWorkflow`` in Python, against the configs.

    Make it the first expression in a config's ``initialize``.

    Args:
        argv: the command line; defaults to ``sys.argv``.

    Raises:
        ValueError: if an option is not an id of the configs (the message names the closest ones), is not read by
            anything, or is not accepted by the chosen method; or if its value is None, which MONAI drops, "false",
            which is text and would count as true, or text instead of a number.
    """
    options = words = arguments(argv)
    if args_file := options.get("args_file"):
        options = {**ConfigParser.load_config_file(args_file), **options}
    files = config_files(argv) or [str(file) for file in ensure_tuple(options.get("config_file", ()))]
    if not options or not files:
        workflow = find_caller(ConfigWorkflow) if argv is None else None
        if workflow is not None and (problems := _workflow_problems(workflow)):
            raise ValueError("\n".join(problems).replace("--", ""))
        return
    config = ConfigParser.load_config_files(files)
    options = {key: value for key, value in options.items() if key not in RUN_ARGUMENTS}
    problems = unknown_options(list(options), config) + unused_options(options, config)
    problems += method_problems(options, config)
    for key, value in options.items():
        problems += _bad_value(key, value, reduce(_child, _parts(key), config), in_file=key not in words)
    if problems:
        raise ValueError("\n".join(problems))


def unknown_options(options: list[str], config: dict[str, Any]) -> list[str]:
    """Describe each option that would have no effect in ``config``.

    An id may be nested (``trainer::max_epochs`` or ``trainer#max_epochs``). Its last part may be new only in a
    component that takes arguments, next to a ``_target_``.

    Args:
        options: ids from the command line, without dashes.
        config: the merged config.

    Returns:
        One message per unknown option; empty if all are known.

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
            if child is _MISSING and (_OF_METHODS.match(prefix) or (prefix == "method_options::" and _is_method(part))):
                break  # a method's options are defined by its class, also a plugin's: see `method_problems`
            if child is _MISSING:
                problems.append(_message(option, prefix, part, node))
                break
            node = child
            prefix += f"{part}::"
    return problems


def unused_options(options: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Describe each option that ``config`` has but nothing reads, such as one from a base that an overlay replaced.

    Args:
        options: ids from the command line, without dashes, and their values.
        config: the merged config.

    Returns:
        One message per option.

    Example:
        >>> unused_options({"a": 1, "b": 2}, {"a": 0, "b": 0, "run": "$print(@b)"})
        ['Option --a changes nothing: no part of this command reads it.']
    """
    if "run" not in config:  # the expression may have another name
        return []
    parser = ConfigParser(deepcopy(config))
    parser.resolve_macro_and_relative_ids()
    used = {"bundle_root", *re.findall(r"'%(\w+)", str(config))}  # tools pass the root to every bundle
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


def method_problems(options: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    """Describe each option that the chosen method does not take, or that belongs to another method.

    Args:
        options: ids without dashes, and their values.
        config: the merged config, whose ``inferer`` selects the method by `medcf.inferers.select_method`.

    Returns:
        One message per option.
    """
    inferer = config.get("inferer")
    name = options.get("method", config.get("method"))
    if not isinstance(inferer, dict) or inferer.get("_target_") != "medcf.inferers.select_method":
        return []
    if not isinstance(name, str) or name.startswith(("$", "@", "%")):
        return []
    shared = config.get("shared_options", {})
    common = method_arguments(Method)[0]
    problems = []
    for option in options:
        root, *rest = _parts(option)
        asked, all_methods = name, list[str]()
        given = [argument for argument, value in shared.items() if value == f"@{root}" and argument not in common]
        if rest and root == "inferer" and rest[0] not in inferer:
            given = rest[:1]
        elif rest and root == "shared_options":
            given, all_methods = [], rest[:1]  # of whichever methods take it
        elif root == "method_options" and len(rest) > 1:
            asked, given = rest[0], rest[1:2]
        elif root == "method_options" and rest and isinstance(options[option], Mapping):
            asked, given = rest[0], list(options[option])
        elif not isinstance(config.get(root), int | float):
            continue  # a part that other parts also use, such as the scheduler
        try:
            check_method_options(asked, shared=all_methods, given=given)
        except ValueError as error:
            problems.append(f"Option --{option}: {error}")
    return problems


def _workflow_problems(workflow: ConfigWorkflow) -> list[str]:
    """Describe additions to a workflow's config that nothing reads; ``configs`` names its own files."""
    actual = workflow.parser.get()
    files = [workflow.config_root_path / name for name in actual.get("configs", ())]
    if not files or not all(file.is_file() for file in files):
        return []
    written = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    written.resolve_macro_and_relative_ids()
    base = written.get()
    changed = {key: value for key, value in _changes(base, actual).items() if _parts(key)[0] not in OF_MONAI}
    merged = {**base, **{key: value for key, value in actual.items() if key not in OF_MONAI}}
    # a user's own name that some part reads is not a typo
    unread = {message.split()[1].removeprefix("--") for message in unused_options(changed, merged)}
    new = [key for key in changed if key in base or "::" in key or key in unread]
    return unknown_options(new, base) + method_problems(changed, merged)


def _changes(base: Any, actual: Any, prefix: str = "") -> dict[str, Any]:
    """List the ids whose values differ from those in the files, as deep as both have them."""
    if not isinstance(base, dict) or not isinstance(actual, dict):
        return {} if base == actual else {prefix: actual}
    changes: dict[str, Any] = {}
    for key, value in actual.items():
        path = f"{prefix}::{key}" if prefix else str(key)
        changes |= _changes(base[key], value, path) if key in base else {path: value}
    return changes


_MISSING = object()
_OF_METHODS = re.compile(r"(method_options::\w+|shared_options)::$")


def _is_method(name: str) -> bool:
    load_plugins()
    return name in METHODS


def _references(content: Any) -> set[str]:
    """Return the top-level ids that a part of a config refers to."""
    return {ReferenceResolver.split_id(each)[0] for each in ReferenceResolver.find_refs_in_config(content, "")} - {""}


def _bad_value(key: str, value: Any, held: Any, in_file: bool) -> list[str]:
    """Describe a value that MONAI would drop or misread in place of the config's value."""
    problems = []
    if value is None and not in_file:
        problems.append(
            f"MONAI ignores --{key} None: to set null, write it into a JSON file and list that after the config "
            "in --config_file."
        )
    if isinstance(value, str) and value.lower() == "false":
        problems.append(f"--{key} {value} is read as text, which counts as true: write --{key} False.")
    number = isinstance(held, int | float) and not isinstance(held, bool) and key not in WORDS
    if number and isinstance(value, str) and not value.startswith(("$", "@", "%")):
        problems.append(f"--{key} {value} is text, but the config has a number there ({held}): give a number.")
    return problems


def _parts(option: str) -> list[str]:
    return option.lstrip("+").replace("#", "::").split("::")


def _child(node: Any, part: str) -> Any:
    """Return what ``part`` refers to below ``node``, None for a new argument of a component, or the missing mark."""
    if isinstance(node, dict):
        if part in node:
            return node[part]
        return None if "_target_" in node else _MISSING
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    return _MISSING


def _message(option: str, prefix: str, part: str, node: Any) -> str:
    known = sorted(str(key) for key in node if not str(key).startswith("_")) if isinstance(node, dict) else []
    hint = did_you_mean(part, known, f"--{prefix}{{}}")
    return f"Unknown option --{option}.{hint} The config's options are: {', '.join(prefix + key for key in known)}."
