# SPDX-License-Identifier: Apache-2.0
"""Checks of single options: one of several words, or a number."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, get_args

__all__ = ["check_choice", "check_numbers"]

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
