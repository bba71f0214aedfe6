# SPDX-License-Identifier: Apache-2.0
"""Progress bars on a terminal, occasional lines in a log file."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from tqdm import tqdm

__all__ = ["Progress", "progress_bar"]

_SECONDS_IN_A_FILE = 60.0


class Progress(Protocol):
    """What loops need of a progress bar, such as tqdm's."""

    n: float
    total: float

    def update(self, n: int, /) -> object:
        """Count ``n`` more units."""


def progress_bar(total: int | None, title: str, *, unit: str = "it", show: bool = True, inner: bool = False) -> Any:
    """Create a progress bar for a loop; close it, or use it as a context.

    Args:
        total: number of updates.
        title: text of the bar.
        unit: name of what is counted.
        show: False creates a bar that shows nothing.
        inner: a bar for part of what another one counts. It disappears when done, and is not shown in a log file, where
            nothing can be overwritten.

    Returns:
        A tqdm bar: ``update(n)``, ``total``, ``n``. In a log file it writes one line per minute, and a final one.
    """
    terminal = sys.stderr.isatty()
    options: dict[str, Any] = {} if terminal else {"mininterval": _SECONDS_IN_A_FILE, "maxinterval": 1e9, "ncols": 80}
    if not terminal:
        options["bar_format"] = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed}, {remaining} left\n"
    hidden = not show or (inner and not terminal)
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, leave=not inner, **options)
