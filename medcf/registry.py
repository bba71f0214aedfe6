# SPDX-License-Identifier: Apache-2.0
"""Registries of named components, open to third parties.

A component registers itself in its own file with one line. Alternatively, an entry is the text ``"module:attribute"``,
imported on lookup, so that only its users need its dependencies. Other packages add components through entry points in
the group ``medcf.plugins``. Each names a module, which is imported, or a callable, which is imported and called without
arguments; either one registers its components. Every bundle, metric, benchmark and report then finds them by name.
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

    A plugin that fails to load is reported by a warning and skipped, so one broken package does not stop a run that
    does not use it.

    Returns:
        The names of the loaded entry points.
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
    """Find a component by name, after loading the plugins.

    Args:
        store: one of the registries of this module.
        name: name of the component.

    Returns:
        The registered object; for an entry ``"module:attribute"``, the object it names.

    Raises:
        ValueError: if no component has that name; the message lists the known ones.
        ImportError: if the module of an entry, or something it needs, is not installed.
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
    """Create a component by name.

    Args:
        store: one of the registries of this module.
        name: name of the component.
        kwargs: its arguments.

    Returns:
        The result of calling the component, a class or a function.

    Raises:
        ValueError: if no component has that name, or it rejects the arguments.
    """
    component = lookup(store, name)
    try:
        return component(**kwargs)
    except TypeError as error:
        raise ValueError(f"{name!r}, one of the registered {store.name}, rejects its arguments: {error}.") from error
