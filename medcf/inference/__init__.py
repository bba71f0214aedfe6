# SPDX-License-Identifier: Apache-2.0
"""From a case to its files: the explainer, a bundle's job, and its output."""

from __future__ import annotations

from medcf.inference.attribution import Attribution
from medcf.inference.case_result import CaseResult
from medcf.inference.evaluator import CaseWriter, CounterfactualEvaluator
from medcf.inference.explainer import Explainer
from medcf.inference.inputs import CaseList, list_cases
from medcf.inference.panel import PanelWriter
from medcf.inference.run_folder import RunFolder
from medcf.inference.summary import finish_run
from medcf.inference.writers import NiftiWriter, create_writers

__all__ = [
    "Attribution",
    "CaseList",
    "CaseResult",
    "CaseWriter",
    "CounterfactualEvaluator",
    "Explainer",
    "NiftiWriter",
    "PanelWriter",
    "RunFolder",
    "create_writers",
    "finish_run",
    "list_cases",
]
