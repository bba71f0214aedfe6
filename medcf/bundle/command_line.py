# SPDX-License-Identifier: Apache-2.0
"""The command line of ``python -m monai.bundle run``, read from ``sys.argv`` as MONAI's own parser reads it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["arguments", "config_files", "parse_options"]


def arguments(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse the options of a ``monai.bundle`` command line.

    Args:
        argv: the command line including the program; defaults to ``sys.argv``.

    Returns:
        Option names without dashes and their values; empty if the program is not ``monai.bundle run``.
    """
    argv = sys.argv if argv is None else argv
    program = Path(argv[0]).parts[-3:] if argv else ()
    if program != ("monai", "bundle", "__main__.py") or len(argv) < 2 or argv[1] != "run":
        return {}
    return parse_options(argv[2:])


def parse_options(words: list[str]) -> dict[str, Any]:
    """Parse ``--name value`` and ``--name=value``, with Python's literals as values, as MONAI's command line does.

    Args:
        words: the command line without program and command; words that belong to no option are ignored.

    Example:
        >>> parse_options(["--models_dir", "mine", "--channels=[8, 16]", "--compile"])
        {'models_dir': 'mine', 'channels': [8, 16], 'compile': True}
    """
    from fire.parser import DefaultParseValue

    options: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], None], strict=False):
        if not _is_flag(word):
            continue
        key, equals, value = word.lstrip("-").partition("=")
        if equals:
            options[key] = DefaultParseValue(value)
        else:
            options[key] = True if following is None or _is_flag(following) else DefaultParseValue(following)
    return options


def config_files(argv: list[str] | None = None) -> list[str]:
    """List the config files named on a ``monai.bundle`` command line, in order."""
    files = arguments(argv).get("config_file", [])
    if isinstance(files, str):
        files = [part.strip() for part in files.split(",")]
    return [str(file) for file in files] if isinstance(files, (list, tuple)) else []


def _is_flag(word: str) -> bool:
    """Tell an option from a value; a negative number is a value."""
    return word.startswith("--") or (word.startswith("-") and word[1:2].isalpha())
