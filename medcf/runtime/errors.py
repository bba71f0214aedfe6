# SPDX-License-Identifier: Apache-2.0
"""A file that cannot be used: as an exception, and as a row of ``failures.csv``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

__all__ = ["Failure", "UnreadableImage", "as_damage"]


class UnreadableImage(ValueError):  # noqa: N818 - named after what happened to the file, as in pydicom and PIL
    """A file that cannot be used as an image.

    Neither the message nor the fields contain anything from inside the file, so they are safe to log and to tabulate.

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


@contextmanager
def as_damage(path: str | PathLike[str]) -> Iterator[None]:
    """Treat any error other than `UnreadableImage` as damage to the file: readers raise all kinds of exceptions."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(path, f"is damaged ({type(error).__name__})", "Export it again.") from error


@dataclass(frozen=True)
class Failure:
    """A file without a counterfactual.

    Attributes:
        file: path of the input.
        stage: ``"read"``, ``"infer"`` or ``"write"``.
        reason: what was wrong.
        remedy: what the user can do about it.
    """

    file: str
    stage: str
    reason: str
    remedy: str

    @classmethod
    def of(cls, error: UnreadableImage) -> Failure:
        """Create a failure from the file, reason and remedy of an error."""
        return cls(error.path, "read", error.reason, error.remedy)
