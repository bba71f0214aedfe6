# SPDX-License-Identifier: Apache-2.0
"""The inference of a bundle as a user starts it: in this process, or as a command."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow


class Job:
    """The job of a bundle's ``inference.json`` with options over it."""

    def __init__(self, bundle: Path, options: dict[str, Any]) -> None:
        self.configs, self.options = bundle / "configs", options

    def start(self, *overlays: str, **overrides: Any) -> ConfigWorkflow:
        """Initialize it, with further configs by name."""
        workflow = ConfigWorkflow(
            [str(self.configs / name) for name in ("inference.json", *overlays)],
            meta_file=str(self.configs / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            **{**self.options, **overrides},
        )
        workflow.initialize()
        return workflow

    def run(self, *overlays: str, **overrides: Any) -> Path:
        """Run it; return its folder."""
        workflow = self.start(*overlays, **overrides)
        workflow.run()
        workflow.finalize()
        return Path(overrides["output_dir"])

    def command(self, **overrides: Any) -> list[str]:
        """Return its command line."""
        words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(self.configs / "inference.json")]
        for key, value in {**self.options, **overrides}.items():
            words += [f"--{key}", str(value)]
        return words

    @staticmethod
    def scores(folder: Path) -> list[dict[str, str]]:
        """Return the rows of ``scores.csv`` without what differs between equal runs."""
        with (folder / "scores.csv").open() as file:
            return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def job(request: pytest.FixtureRequest, options: dict[str, Any]) -> Job:
    """The job of the module's ``BUNDLE`` with its ``options``."""
    return Job(request.module.BUNDLE, options)
