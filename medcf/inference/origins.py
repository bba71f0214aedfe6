# SPDX-License-Identifier: Apache-2.0
"""Who sets each option of a method: its own default, the bundle for all methods or for this one, or the user."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from monai.bundle import ConfigParser

from medcf.inferers.method import Method
from medcf.inferers.selection import merged_options
from medcf.registry import METHODS, lookup

__all__ = ["describe_options", "option_origins"]

_BY_BUNDLE = ("shared_options", "method_options")
_REFERENCE = re.compile(r"@[\w#:]+")


def option_origins(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find who sets the options of the method that a bundle's config selects.

    Args:
        config: raw config, whose ``inferer`` is a `medcf.inferers.select_method`, as in ``inference.json``.

    Returns:
        For each option its ``value``, ``from`` (``"default"``, ``"shared_options"``, ``"method_options"`` or
        ``"inferer"``, the user) and the method's own ``default``, as JSON values; an expression of the config stays as
        it is written. Empty if the config selects no method.
    """
    parser = ConfigParser(dict(config))

    def value_of(value: Any) -> Any:
        while isinstance(value, str) and _REFERENCE.fullmatch(value):
            value = parser.get(value[1:])
        return value

    inferer = config.get("inferer")
    if not isinstance(inferer, Mapping) or inferer.get("_target_") != "medcf.inferers.select_method":
        return {}
    given = {key: value for key, value in inferer.items() if not key.startswith("_")}
    name, options, shared = (value_of(given.pop(key, None)) for key in ("name", "options", "shared"))
    if not isinstance(name, str) or name.startswith("$"):
        return {}
    found = {
        option: {"value": default, "from": "default", "default": default}
        for option, default in own_defaults(lookup(METHODS, name)).items()
    }
    for option, (value, origin) in merged_options(name, options, shared, given).items():
        if option in found:
            found[option] |= {"value": value_of(value), "from": origin}
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(found, default=str))
    return plain


def own_defaults(method: Any) -> dict[str, Any]:
    """Return the options of a method and their defaults; None where it has none."""
    if inspect.isclass(method) and issubclass(method, Method):
        options = [field for field in fields(method.Options) if field.init]
        return {option.name: None if option.default is MISSING else option.default for option in options}
    parameters = inspect.signature(method).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def describe_options(name: str, origins: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which options the bundle sets in place of the method's own defaults; empty if it sets none.

    Example:
        >>> describe_options("mine", {"step": {"value": 0.3, "from": "shared_options", "default": 0.1}})
        "The bundle sets options of mine in place of the method's own defaults: step 0.3 (0.1), by shared_options."
    """
    parts = []
    for origin in _BY_BUNDLE:
        changed = [
            f"{option} {each['value']} ({each['default']})"
            for option, each in origins.items()
            if each["from"] == origin and each["value"] != each["default"]
        ]
        if changed:
            parts.append(f"{', '.join(changed)}, by {origin}")
    if not parts:
        return ""
    return f"The bundle sets options of {name} in place of the method's own defaults: {'; '.join(parts)}."
