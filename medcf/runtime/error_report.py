# SPDX-License-Identifier: Apache-2.0
"""Put the reason of a failed command last, where it is read."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from types import TracebackType

__all__ = ["FilesFailed", "report_errors", "root_cause"]

# How MONAI wraps whatever was raised inside an expression, a component or a transform.
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate", "applying transform")


class FilesFailed(RuntimeError):  # noqa: N818 - an outcome rather than an error
    """A run went through, but some of its files gave no result: the exit status says so, and no code is to blame."""


def root_cause(error: BaseException) -> BaseException:
    """Return the error that MONAI wrapped, or the error itself."""
    while error.__cause__ is not None and str(error).startswith(_WRAPPERS):
        error = error.__cause__
    return error


def report_errors() -> None:
    """From now on, end an uncaught error's traceback with the message of its cause; `FilesFailed` shows that alone.

    MONAI ends it with the text of the expression that failed, below which nobody looks for "The weights file ... does
    not exist". The exit status is 1 in any case. For a command line: to be the first expression of ``initialize``; it
    changes ``sys.excepthook`` and how the terminal shows names that are not valid text.
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
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what no encoding can write
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
