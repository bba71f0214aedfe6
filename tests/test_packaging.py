# SPDX-License-Identifier: Apache-2.0
"""What a distribution of medcf brings."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import medcf

ROOT = Path(__file__).parents[1]


def test_the_package_says_that_it_is_typed() -> None:
    """Without this file type checkers take everything of medcf for Any (PEP 561)."""
    assert (Path(medcf.__file__).parent / "py.typed").is_file()


def test_the_constraints_allow_what_the_extras_ask_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    asked.append("protobuf>=6.30,<7")  # of tritonclient 2.73, which monai-deploy-app-sdk brings
    for requirement in map(Requirement, asked):
        if requirement.name.lower() in pinned:
            (pin,) = pinned[requirement.name.lower()].specifier
            assert Version(pin.version) in requirement.specifier, requirement
