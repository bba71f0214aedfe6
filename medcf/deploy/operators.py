# SPDX-License-Identifier: Apache-2.0
"""Operators of MONAI Deploy around a bundle's `medcf.Explainer`: find the cases, explain them, write DICOM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medcf.data import Case
from medcf.deploy.cases import cases_of, chunks
from medcf.deploy.outcome import Outcome
from medcf.deploy.sdk import load_sdk
from medcf.deploy.settings import open_explainer
from medcf.inference import Explainer
from medcf.inference.inputs import CaseList, list_cases

load_sdk()

from holoscan.conditions import BooleanCondition  # noqa: E402
from monai.deploy.core import Fragment, Operator, OperatorSpec  # noqa: E402

__all__ = ["CaseLoaderOperator", "CounterfactualOperator", "DicomWriterOperator"]

logger = logging.getLogger(__name__)


class CaseLoaderOperator(Operator):
    """Find the cases in a folder: DICOM pictures, loops and series, and all other formats that medcf reads.

    It emits as many cases at a time as the explainer takes into one batch, and all frames of a loop together, so memory
    does not grow with the number of cases.

    Named output:
        cases: `medcf.inference.inputs.CaseList`.

    Args:
        fragment: the application.
        explainer: its options say what counts as a case.
        input_path: folder, or one file.
        output_path: folder of the results, which is not searched.
    """

    def __init__(
        self, fragment: Fragment, *args: Any, explainer: Explainer, input_path: Path, output_path: Path, **kwargs: Any
    ) -> None:
        self.explainer, self.input_path, self.output_path = explainer, Path(input_path), Path(output_path)
        self.more = BooleanCondition(fragment, name="more")
        self._parts: list[CaseList] | None = None
        super().__init__(fragment, self.more, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the output."""
        spec.output("cases")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Emit the next cases; the last ones end the application."""
        if self._parts is None:
            self._parts = self._listed()
        part = self._parts.pop(0)
        if not self._parts:
            self.more.disable_tick()
        op_output.emit(part, "cases")

    def _listed(self) -> list[CaseList]:
        """Split what is found; the files that cannot be used come first, even if there is nothing else."""
        listed = list_cases(self.input_path, None, self.output_path, self.explainer.listing)
        parts: list[list[Case]] = list(chunks(listed.cases, self.explainer.batch_size)) or [[]]
        return [CaseList(cases, [] if number else listed.failures) for number, cases in enumerate(parts)]


class CounterfactualOperator(Operator):
    """Explain cases by a bundle; one that fails does not stop the others.

    Named input:
        cases: from `CaseLoaderOperator`, or the SDK's ``dicom_study_list`` or ``study_selected_series_list``.

    Named output:
        results: list of `medcf.CaseResult` and `medcf.Failure`.

    Args:
        fragment: the application.
        bundle: name or folder of the bundle.
        explainer: in place of a bundle, one that is already there.
        settings: options of the bundle, such as ``{"target": 1}``.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        bundle: str | Path = "diffice",
        explainer: Explainer | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.explainer = open_explainer(bundle, **(settings or {})) if explainer is None else explainer
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare input and output."""
        spec.input("cases")
        spec.output("results")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Explain the cases of one message."""
        listed = cases_of(op_input.receive("cases"), self.explainer)
        results: list[Any] = list(listed.failures)
        for start in range(0, len(listed.cases), self.explainer.batch_size):
            batch = listed.cases[start : start + self.explainer.batch_size]
            results += self.explainer.batch([case.item() for case in batch])
        op_output.emit(results, "results")


class DicomWriterOperator(Operator):
    """Write what the explainer's writers make of each case as DICOM files into one flat folder, and ``result.json``.

    The files are named after their SOP Instance UIDs, and complete or not there, whenever the process is killed.

    Named input:
        results: from `CounterfactualOperator`.

    Args:
        fragment: the application.
        output_path: folder.
        title: name of the job in ``result.json``.
    """

    def __init__(self, fragment: Fragment, *args: Any, output_path: Path, title: str = "medcf", **kwargs: Any) -> None:
        self.outcome = Outcome(Path(output_path), title)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input."""
        spec.input("results")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Write the results of one message."""
        self.outcome.add(op_input.receive("results"))

    def stop(self) -> None:
        """Write ``result.json`` when the application ends."""
        self.outcome.close()
