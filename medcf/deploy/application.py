# SPDX-License-Identifier: Apache-2.0
"""A bundle as a MONAI Deploy application: a folder of images in, a folder of DICOM objects out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from medcf.deploy.operators import CaseLoaderOperator, CounterfactualOperator, DicomWriterOperator
from medcf.deploy.outcome import Outcome
from medcf.deploy.sdk import load_sdk
from medcf.inference import Explainer

load_sdk()

from monai.deploy.core import Application  # noqa: E402

__all__ = ["CounterfactualApplication"]


class CounterfactualApplication(Application):
    """Explain all cases in a folder by a bundle.

    Args:
        explainer: from `medcf.deploy.open_explainer`.
        input_path: folder of images, or one file.
        output_path: folder for the results.
        title: name of the job in ``result.json``.

    Example::

        app = CounterfactualApplication(open_explainer("diffice", target=1), "in", "out")
        app.run()
        print(app.outcome.describe())
    """

    def __init__(
        self, explainer: Explainer, input_path: str | Path, output_path: str | Path, title: str = "medcf"
    ) -> None:
        self.explainer, self.title = explainer, title
        self.input_path, self.output_path = Path(input_path), Path(output_path)
        self.outcome = Outcome(self.output_path, title)  # of the writer, once it exists
        super().__init__([sys.executable, "medcf.deploy"])  # otherwise holoscan parses this program's own arguments

    def compose(self) -> None:
        """Connect the operators."""
        where: dict[str, Any] = {"explainer": self.explainer, "output_path": self.output_path}
        load = CaseLoaderOperator(self, input_path=self.input_path, name="load", **where)
        explain = CounterfactualOperator(self, explainer=self.explainer, name="explain")
        write = DicomWriterOperator(self, output_path=self.output_path, title=self.title, name="write")
        self.outcome = write.outcome
        self.add_flow(load, explain, {("cases", "cases")})
        self.add_flow(explain, write, {("results", "results")})
