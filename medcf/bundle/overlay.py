# SPDX-License-Identifier: Apache-2.0
"""Tell a user who runs an overlay alone what it is to be laid over."""

from __future__ import annotations

from pathlib import Path

from medcf.bundle.command_line import config_files

__all__ = ["overlay_of"]


def overlay_of(*bases: str, argv: list[str] | None = None) -> None:
    """Refuse to run an overlay without the configs that it changes.

    To be the expression of an overlay's ``initialize`` after ``report_errors``, which the overlay must import itself.
    Outside ``python -m monai.bundle run`` it does nothing.

    Args:
        bases: names of the configs that must come first, for example ``"inference.json"``.
        argv: the command line; defaults to ``sys.argv``.

    Raises:
        ValueError: one of them is not on the command line.
    """
    files = config_files(argv)
    names = [Path(file).name for file in files]
    missing = [base for base in bases if base not in names]
    if files and missing:
        overlay = Path(files[-1])
        whole = [*(str(overlay.with_name(base)) for base in missing), *files]
        raise ValueError(
            f"{overlay.name} is an overlay of {' and '.join(bases)} and does not run alone: "
            f'use --config_file "{str(whole).replace(", ", ",")}".'
        )
