# SPDX-License-Identifier: Apache-2.0
"""The command and kind of machine behind a figure, without naming the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["INTERVALS", "describe_command", "describe_machine", "describe_run"]


def describe_command(program: str, arguments: Sequence[str]) -> str:
    """Return the command as a reader would type it.

    A folder outside the project becomes ``$NAME``; one below the folder of the environment's ``DATA``, ``$DATA/name``.

    Args:
        program: module that ran, for example ``benchmarks.counterfactual``.
        arguments: its arguments.
    """
    data, shown = Path(os.environ.get("DATA", "")), []
    for argument in arguments:
        path = Path(argument)
        if path.is_absolute() and data.is_absolute() and path.is_relative_to(data):
            shown.append(f'"$DATA/{path.relative_to(data).as_posix()}"')
        else:
            shown.append(f'"${path.name.upper()}"' if path.is_absolute() else shlex.quote(argument))
    return " ".join(["python -m", program, *shown])


def describe_machine(device: str, threads: int) -> str:
    """Return versions and the kind of processor."""
    torch_device = torch.device(device)
    if torch_device.type == "cuda":
        where = torch.cuda.get_device_name(torch_device)
    else:
        where = f"{platform.machine()} CPU, {threads} of {os.cpu_count()} cores"
    packages = ", ".join(f"{name} {version(name)}" for name in ("medcf", "torch", "monai"))
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, {packages}; {where}."


#: What stands below tables of figures whose intervals are those of the metrics.
INTERVALS = "Intervals: 95 %, over subjects; of shares exact, of other figures by BCa bootstrap."


def describe_run(program: str, arguments: Sequence[str], device: str, threads: int, stem: str) -> str:
    """Return what stands below the tables of a study: machine, intervals, command and the CSV with the figures."""
    command = describe_command(program, arguments)
    return f"{describe_machine(device, threads)} {INTERVALS} Command: `{command}`; figures: `{stem}.csv`."
