# SPDX-License-Identifier: Apache-2.0
"""Checks of single options: one of some words, or a number."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, get_args

__all__ = ["check_choice", "check_numbers"]

_RENAMED = {"code": "published_code"}


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s.

    Raises:
        ValueError: names the option, and the values that there are.
    """
    if value in get_args(choices):
        return
    if _RENAMED.get(value) in get_args(choices):
        raise ValueError(f"{name}={value!r} has another name now: use {_RENAMED[value]!r}.")
    raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, get_args(choices)))}.")


def check_numbers(*, whole: bool = False, **options: Any) -> None:
    """Refuse options that are no numbers, such as text of a command line, before they are computed with.

    Args:
        whole: require whole numbers.
        options: values by the name of the option; None is the caller's.

    Raises:
        ValueError: one is no number, or no whole one; names it.
    """
    for name, value in options.items():
        if value is not None and not isinstance(value, Integral if whole else Real):
            raise ValueError(f"{name}={value!r} is no {'whole ' if whole else ''}number: give one.")
