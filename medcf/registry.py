# SPDX-License-Identifier: Apache-2.0
"""Registries of named components, open to third parties.

A component registers itself in its own file, one line a component; or an entry is the text ``"module:attribute"``, and
is imported when it is looked up, so that only its user needs what it needs. Another package adds its own through entry
points of the group ``medcf.plugins``: each names a module, which is imported, or a callable, which is imported and
called without arguments; either registers what it brings. Every bundle, metric, benchmark and report then finds it by
name.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from monai.utils import ComponentStore

__all__ = [
    "METHODS",
    "METRICS",
    "PHANTOMS",
    "PLUGIN_GROUP",
    "SCHEDULERS",
    "WRITERS",
    "create",
    "load_plugins",
    "lookup",
]

logger = logging.getLogger(__name__)

PLUGIN_GROUP = "medcf.plugins"

METHODS = ComponentStore("methods", "Counterfactual methods: inferers called as inferer(inputs, network)")
SCHEDULERS = ComponentStore("schedulers", "Noise schedulers that follow their own list of kept steps")
METRICS = ComponentStore("metrics", "Metrics of counterfactuals: validity, realism, identity, localization")
PHANTOMS = ComponentStore("phantoms", "Seeded phantoms with paired ground truth")
WRITERS = ComponentStore("writers", "Writers of a case's result: files in one format")


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every installed plugin once.

    A plugin that fails to load is reported by a warning and left out, so that one broken package does not stop a run
    that does not use it.

    Returns:
        The names of the entry points that were loaded.
    """
    loaded = []
    for entry_point in sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: point.name):
        try:
            plugin = entry_point.load()
            if not isinstance(plugin, ModuleType):
                plugin()
        except Exception:
            logger.warning(
                "The plugin %r (%s) could not be loaded.", entry_point.name, entry_point.value, exc_info=True
            )
        else:
            loaded.append(entry_point.name)
    return tuple(loaded)


def lookup(store: ComponentStore, name: str) -> Any:
    """Find a component by name, after the plugins were loaded.

    Args:
        store: one of the registries of this module.
        name: name of the component.

    Returns:
        The registered object; of an entry ``"module:attribute"``, what that names.

    Raises:
        ValueError: no component has that name; the message lists those that exist.
        ImportError: the module of an entry, or something that it needs, is not installed.
    """
    load_plugins()
    if name not in store:
        known = ", ".join(sorted(store.names)) or "none"
        raise ValueError(f"{name!r} is not one of the registered {store.name}: {known}.")
    found = store[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    return getattr(import_module(module), attribute)


def create(store: ComponentStore, name: str, **kwargs: Any) -> Any:
    """Make a component by name.

    Args:
        store: one of the registries of this module.
        name: name of the component.
        kwargs: its arguments.

    Returns:
        What the component, a class or a function, makes of them.

    Raises:
        ValueError: no component has that name, or it does not take the arguments.
    """
    component = lookup(store, name)
    try:
        return component(**kwargs)
    except TypeError as error:
        raise ValueError(f"{name!r}, of the registered {store.name}, does not fit its arguments: {error}.") from error
