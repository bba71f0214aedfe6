# SPDX-License-Identifier: Apache-2.0
"""Methods by name: strictly, or from one set of arguments that serves them all."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from medcf.registry import METHODS, create, lookup

__all__ = ["create_method", "method_arguments", "select_method"]

logger = logging.getLogger(__name__)


def create_method(name: str, **kwargs: Any) -> Any:
    """Make a registered counterfactual method, plugins' included.

    Args:
        name: name in ``medcf.registry.METHODS``, for example "diffice".
        kwargs: arguments of that method's constructor: scheduler, classifier, target and its own options.

    Returns:
        The inferer, called as ``inferer(inputs, network)``.

    Raises:
        ValueError: there is no such method (the message lists those that exist), or it does not take an argument.
    """
    return create(METHODS, name, **kwargs)


def select_method(name: str, *, options: Mapping[str, Mapping[str, Any]] | None = None, **shared: Any) -> Any:
    """Make one of several methods from the arguments that they share, so that a config changes it by its name alone.

    Args:
        name: name in ``medcf.registry.METHODS``.
        options: for some or all methods, what differs from ``shared``; goes before it, and must fit the method.
        shared: arguments of any method. One that this method does not know is left out if another registered method
            knows it.

    Returns:
        The inferer, called as ``inferer(inputs, network)``.

    Raises:
        ValueError: an unknown method, or an argument that this method (``options``) or no method (``shared``) knows;
            the message names the nearest.

    Example:
        >>> control = select_method("unchanged", classifier=None, target=1, strength=0.3, options={"dime": {}})
        >>> control.target
        1
    """
    method = lookup(METHODS, name)
    for other in options or {}:
        lookup(METHODS, other)
    own = dict((options or {}).get(name) or {})
    known, takes_any = method_arguments(method)
    everywhere = set().union(*(method_arguments(lookup(METHODS, other))[0] for other in METHODS.names))
    for argument in own:
        if argument not in known and not takes_any:
            raise ValueError(_unknown(argument, known, f"The method {name!r} does not take the option"))
    for argument in shared:
        if argument not in everywhere and not takes_any:
            raise ValueError(_unknown(argument, known | everywhere, "No registered method takes the argument"))
        if argument in own and repr(shared[argument]) != repr(own[argument]):
            logger.info(
                "%s: %s=%r from its own options goes before %r", name, argument, own[argument], shared[argument]
            )
    return create_method(name, **{k: v for k, v in {**shared, **own}.items() if k in known or takes_any})


def method_arguments(method: Any) -> tuple[set[str], bool]:
    """List the arguments by name of a method's constructor, those that it hands to its parents included.

    Args:
        method: a class or a function.

    Returns:
        The names, and whether it takes any further ones, whose names cannot be known.
    """
    makers = [method]
    if inspect.isclass(method):
        makers = [vars(parent)["__init__"] for parent in method.__mro__ if "__init__" in vars(parent)]
    names: set[str] = set()
    takes_any = False
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not takes_any:
            break
    return names - {"self"} - set(getattr(method, "fixed_options", ())), takes_any


def _unknown(argument: str, known: set[str], what: str) -> str:
    near = get_close_matches(argument, sorted(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{what} {argument!r}.{hint} There are: {', '.join(sorted(known))}."
