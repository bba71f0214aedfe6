# SPDX-License-Identifier: Apache-2.0
"""Prints the reason for a failed command last, where users look for it."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from types import TracebackType

__all__ = ["FilesFailed", "report_errors", "root_cause"]

# How MONAI wraps errors raised inside an expression, a component or a transform.
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")


class FilesFailed(RuntimeError):  # noqa: N818 - an outcome rather than an error
    """A run completed, but some files gave no result. The exit status reports it; no code is to blame."""


def root_cause(error: BaseException) -> BaseException:
    """Return the error that MONAI wrapped, or the error itself."""
    while error.__cause__ is not None and str(error).startswith(_WRAPPERS):
        error = error.__cause__
    return error


def report_errors() -> None:
    """From now on, end the traceback of an uncaught error with its cause; print only the message of `FilesFailed`.

    MONAI ends the traceback with the text of the failing expression, and nobody scrolls up to "The weights file ...
    does not exist". The exit status is 1 either way. For command lines: make it the first expression in ``initialize``.
    It changes ``sys.excepthook`` and how the terminal shows names that are not valid text.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = root_cause(error)
        if isinstance(cause, FilesFailed):
            sys.stderr.write(f"{cause}\n")
            return
        sys.__excepthook__(kind, error, traceback)
        if cause is not error:
            sys.stderr.write(f"\n{type(cause).__name__}: {cause}\n")

    sys.excepthook = hook
    for stream in (sys.stdout, sys.stderr):  # file names may contain bytes that cannot be encoded
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
