# SPDX-License-Identifier: Apache-2.0
"""Bars on a terminal; a line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar"]

_SECONDS_IN_A_FILE = 60.0


def progress_bar(total: int | None, title: str, *, unit: str = "it", show: bool = True, inner: bool = False) -> Any:
    """Make a bar for a loop, to be closed or used as a context.

    Args:
        total: how often it is updated.
        title: what the bar says.
        unit: of what it counts.
        show: False makes a bar that shows nothing.
        inner: the bar of a part of what another one counts: it goes when it is done, and is not shown in a log file,
            where nothing can be overwritten.

    Returns:
        tqdm's bar: ``update(n)``, ``total``, ``n``. In a log file it writes a line a minute, and its last one.
    """
    terminal = sys.stderr.isatty()
    options: dict[str, Any] = {} if terminal else {"mininterval": _SECONDS_IN_A_FILE, "maxinterval": 1e9, "ncols": 80}
    if not terminal:
        options["bar_format"] = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed}, {remaining} left\n"
    hidden = not show or (inner and not terminal)
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, leave=not inner, **options)
