# SPDX-License-Identifier: Apache-2.0
"""The one exception of everything that reads images."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

__all__ = ["UnreadableImage"]


class UnreadableImage(ValueError):  # noqa: N818 - the name says what happened to the file, as pydicom's and PIL's do
    """A file that cannot be used as a 2D image.

    Neither the message nor the fields hold anything from inside the file, so they may be logged and put in a table.

    Args:
        path: the file. Only its name is shown, because folders are often named after patients.
        reason: what is wrong with it, as a clause: ``"holds no image (a structured report)"``.
        remedy: what the user can do about it, as an imperative sentence.
    """

    def __init__(self, path: str | PathLike[str], reason: str, remedy: str) -> None:
        self.path = str(path)
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{Path(path).name}: {reason}. {remedy}")

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str, str]]:
        """Keep the three fields when a data loader's worker sends the error to the main process."""
        return type(self), (self.path, self.reason, self.remedy)
