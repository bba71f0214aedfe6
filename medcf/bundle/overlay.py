# SPDX-License-Identifier: Apache-2.0
"""Configs that modify another config, and say so if run alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser

from medcf.bundle.command_line import config_files
from medcf.runtime.error_report import report_errors

__all__ = ["config_chain", "expect_base"]


def expect_base(configs: Sequence[str], name: str, *bases: str) -> None:
    """Refuse an overlay without the config that it modifies.

    Every config adds its name to the list ``configs``: one that runs alone by ``"configs": ["train.json"]``, an overlay
    by three lines that extend its base::

        "+configs": ["train_classifier.json"],
        "+imports": ["$from medcf.bundle import expect_base"],
        "+initialize": ["$expect_base(@configs, 'train_classifier.json', 'train.json')"],

    Args:
        configs: the names of the configs, in order.
        name: the overlay's own name.
        bases: the configs that it can modify; one of them must precede it.

    Raises:
        ValueError: if none of them does; the message gives the value for ``--config_file``.

    Example:
        >>> expect_base(["train.json", "train_classifier.json"], "train_classifier.json", "train.json")
    """
    before = list(configs[: configs.index(name)])
    if any(base in before for base in bases):
        return
    report_errors()  # the base would have done this
    places = {Path(file).name: Path(file).parent for file in config_files()}
    folder = places.get(name, Path())
    files = ",".join(f"'{folder / file}'" for file in [*before, bases[0], *configs[len(before) :]])
    raise ValueError(
        f'{name} is an overlay over {" or ".join(bases)} and does not run without it: --config_file "[{files}]"'
    )


def config_chain(path: Path) -> list[Path]:
    """List the configs that a config needs before it, with itself last.

    Args:
        path: config file; if it has several possible bases, the first one is used.
    """
    check = re.search(r"expect_base\(@configs, (.*?)\)", str(ConfigParser.load_config_file(path).values()))
    if check is None:
        return [path]
    _, base, *_ = ast.literal_eval(check[1])
    return [*config_chain(path.with_name(base)), path]
