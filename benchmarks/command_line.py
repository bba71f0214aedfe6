# SPDX-License-Identifier: Apache-2.0
"""Common options of the benchmarks' command lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["setting", "study_parser"]


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
