# SPDX-License-Identifier: Apache-2.0
"""Checks of options: an unknown name, one of several words, a number, and all fields of a dataclass by their types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["check_choice", "check_fields", "check_names", "check_numbers", "did_you_mean", "numbers"]

_RENAMED = {"code": "published_code"}


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is not one of a ``Literal``'s.

    Raises:
        ValueError: names the option and the valid values.
    """
    if value in get_args(choices):
        return
    if _RENAMED.get(value) in get_args(choices):
        raise ValueError(f"{name}={value!r} was renamed: use {_RENAMED[value]!r}.")
    raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, get_args(choices)))}.")


def check_numbers(*, whole: bool = False, **options: Any) -> None:
    """Refuse options that are not numbers, such as text from a command line, before computing with them.

    Args:
        whole: require integers.
        options: values by option name; None is left to the caller.

    Raises:
        ValueError: if a value is not a number, or not an integer; names it.
    """
    for name, value in options.items():
        if value is not None and not isinstance(value, Integral if whole else Real):
            raise ValueError(f"{name}={value!r} is not a {'whole ' if whole else ''}number: give one.")


def check_fields(options: Any) -> None:
    """Refuse values of a dataclass that are not of a field's type: truth values, numbers, lists of numbers and words.

    Args:
        options: an instance; fields of other types are not checked.

    Raises:
        ValueError: names the field, and what it takes.
    """
    kind: Any = type(options)
    for name, hint in _hints(kind).items():
        _check_field(name, getattr(options, name), hint)


def numbers(value: Any) -> tuple[Any, ...]:
    """Return one number or several as a tuple."""
    if isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "shape", None) != ():
        return tuple(value)
    return (value,)


def did_you_mean(name: str, known: Iterable[str], form: str = "{!r}") -> str:
    """Return a question that names the closest of the known names, as the form shows it; nothing if none is close."""
    near = get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {form.format(near[0])}?" if near else ""


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that do not exist.

    Args:
        given: the names.
        known: the names that exist.
        what: begins the message, such as "diffice does not take the option".

    Raises:
        ValueError: names the first of them, the closest known name, and all known ones.
    """
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{what} {name!r}.{hint} There are: {', '.join(sorted(known))}.")


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _check_field(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of a field's type, if that is a number, a list of numbers, or one of some words."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    several = [kind for kind in kinds if kind in (int, float) or get_origin(kind) is Sequence]
    if (value is None and NoneType in kinds) or (isinstance(value, str) and value in words):
        return
    if bool in kinds and not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not a truth value: give true or false.")
    if several and (value is None or isinstance(value, bool)):
        raise ValueError(f"{name}={value!r} is not a number: give one.")
    if not several and words and len(kinds) - (NoneType in kinds) == 1:
        check_choice(name, value, Literal[tuple(words)])
    elif several:
        for one in numbers(value) if len(several) > 1 else (value,):
            check_numbers(whole=float not in kinds, **{name: one})
