# SPDX-License-Identifier: Apache-2.0
"""Methods by name: with exact arguments, or from one set of arguments that serves all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from medcf.inferers.derived import with_explain
from medcf.inferers.method import Method
from medcf.inferers.options import option_names
from medcf.registry import METHODS, create, lookup
from medcf.runtime.choices import check_names

__all__ = ["check_method_options", "create_method", "merged_options", "method_arguments", "select_method"]

_SCALES = {"guidance_scale", "guidance_w"}


def create_method(name: str, **kwargs: Any) -> Any:
    """Create a registered counterfactual method, including plugins'.

    Args:
        name: name in ``medcf.registry.METHODS``, such as "diffice".
        kwargs: arguments of that method's constructor: scheduler, classifier, target and its own options.

    Returns:
        The inferer, called as ``inferer(inputs, network)``.

    Raises:
        ValueError: if there is no such method (the message lists the known ones), or it rejects an argument.
    """
    return create(METHODS, name, **kwargs)


def select_method(
    name: str,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Create one of several methods, so that a config or command line changes it by name only.

    Precedence, from high to low: options given for this method, its entry in ``options``, options shared by all
    methods, the method's own defaults.

    Args:
        name: name in ``medcf.registry.METHODS``.
        options: for some or all methods, by name, the options that differ from ``shared``; the method must accept them.
        shared: parts and options for any method. One that this method does not accept is ignored if another registered
            method accepts it.
        given: options for this method, as given by the user (``--inferer#strength 0.9``).

    Returns:
        The inferer, called as ``inferer(inputs, network)``; it has ``explain`` even if the method does not, see
        `medcf.inferers.DerivedMethod`.

    Raises:
        ValueError: if the method is unknown, or an argument is not accepted by this method (``given``, ``options``) or
            by any method (``shared``); the message names the closest match and lists the valid ones. Also if there is a
            prompt of one's own (``conditioner.prompt``) that this method would ignore.

    Example:
        >>> shared = {"classifier": len, "target": 1, "strength": 0.3}
        >>> select_method("unchanged", shared=shared, options={"unchanged": {"seed": 1}}, seed=2).options.seed
        2
    """
    check_method_options(name, options, shared, given)
    known, takes_any = method_arguments(lookup(METHODS, name))
    every = {key: value for key, (value, _) in merged_options(name, options, shared, given).items()}
    made = create_method(name, **{key: value for key, value in every.items() if key in known or takes_any})
    _expect_prompt_is_read(name, made, every.get("conditioner"))
    return with_explain(made, every.get("classifier"), every.get("target"))


def _expect_prompt_is_read(name: str, method: Any, conditioner: Any) -> None:
    """Refuse a prompt for a method that runs its network without one; "unchanged" is the control of any prompt."""
    if getattr(conditioner, "prompt", None) is None or not isinstance(method, Method):
        return
    guided = hasattr(method.options, "class_labels")
    if method.needs_gradients and getattr(method.options, "class_labels", None) is None:
        remedy = "give class_labels='target' (--inferer#class_labels target), " if guided else ""
        raise ValueError(
            f"The method {name!r} reads no prompt: {remedy}choose another method, or leave the prompt out."
        )


def merged_options(
    name: str,
    options: Mapping[str, Mapping[str, Any]] | None,
    shared: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> dict[str, tuple[Any, str]]:
    """Return each part and option that `select_method` has for a method, accepted or not, and which layer sets it."""
    layers = {"shared_options": shared or {}, "method_options": (options or {}).get(name) or {}, "inferer": given}
    every: dict[str, tuple[Any, str]] = {}
    for origin, layer in layers.items():
        if _SCALES & set(layer):  # one replaces the other, with the same meaning
            every = {key: value for key, value in every.items() if key not in _SCALES}
        every.update({key: (value, origin) for key, value in layer.items()})
    return every


def check_method_options(
    name: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    shared: Iterable[str] | None = None,
    given: Iterable[str] = (),
) -> None:
    """Refuse what `select_method` would refuse, without creating the method; see there."""
    known, takes_any = method_arguments(lookup(METHODS, name))
    for other in options or {}:
        lookup(METHODS, other)
    if takes_any:
        return
    own = (*((options or {}).get(name) or {}), *given)
    check_names(own, known, f"The method {name!r} does not take the option")
    everywhere = set(known).union(*(method_arguments(lookup(METHODS, other))[0] for other in METHODS.names))
    check_names(shared or (), everywhere, "No registered method takes the argument")


def method_arguments(method: Callable[..., object]) -> tuple[set[str], bool]:
    """List what can be given to a method: the parts and options of a `Method`, otherwise its own arguments.

    Args:
        method: a class or a function.

    Returns:
        The names, and whether it accepts further arguments with unknown names.
    """
    makers: list[Callable[..., object]] = [method]
    ours: type[Method] | None = None
    if inspect.isclass(method):  # parents take what a constructor passes on to them
        makers = [vars(parent)["__init__"] for parent in method.__mro__ if "__init__" in vars(parent)]
        ours = method if issubclass(method, Method) else None
    names: set[str] = set()
    takes_any = False
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not takes_any:
            break
    if ours is None:
        return names - {"self"}, takes_any
    unused = set() if ours.needs_network else {"scheduler", "conditioner"}
    return names - {"self"} - unused | option_names(ours.Options), False
