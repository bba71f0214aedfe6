# SPDX-License-Identifier: Apache-2.0
"""Common options of the benchmarks' command lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medcf.bundle import bundle_folder

__all__ = ["bundle_command", "setting", "study_parser"]


def bundle_command(bundle: str, configs: Sequence[str], ids: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs a bundle.

    Args:
        bundle: its name.
        configs: files of its ``configs``, later ones over earlier ones.
        ids: ids of the configs and their values.
    """
    folder = bundle_folder(bundle) / "configs"
    listed = "[" + ",".join(f"'{folder / name}'" for name in configs) + "]"
    arguments = [part for name, value in ids.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", listed, *arguments]


def setting(text: str) -> tuple[str, Any]:
    """Take NAME=JSON apart; the type of an argument.

    Raises:
        ValueError: the value is not JSON.
    """
    name, _, value = text.partition("=")
    return name, json.loads(value)


def study_parser(
    program: str, description: str | None, *, bundle: str, studies: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark of methods asks for.

    Args:
        program: module that runs.
        description: what it does.
        bundle: default bundle.
        studies: names of the studies; none for a benchmark that has only one.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--bundle", default=bundle, help="bundle whose networks and settings are used")
    if names := tuple(studies):
        parser.add_argument("--study", nargs="+", choices=names, default=["methods"], help="default: methods")
    parser.add_argument("--rows", nargs="+", help="only these rows of the study")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", type=setting, action="append", default=[], help="config option: ID=JSON, repeatable")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder for tables and figures")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks"), help="folder for stored results")
    return parser
