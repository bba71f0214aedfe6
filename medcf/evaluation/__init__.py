# SPDX-License-Identifier: Apache-2.0
"""What is measured of a method: metrics by name over cases, in one table for bundles, benchmarks and reports."""

from __future__ import annotations

from medcf.evaluation.evidence import AbsentError, Evidence
from medcf.evaluation.gate import Gate, check_gate, report_gate
from medcf.evaluation.judges import Judge
from medcf.evaluation.measurement import Figure, Measurement
from medcf.evaluation.run import Evaluation, run_evaluation
from medcf.evaluation.score import score_table

__all__ = [
    "AbsentError",
    "Evaluation",
    "Evidence",
    "Figure",
    "Gate",
    "Judge",
    "Measurement",
    "check_gate",
    "report_gate",
    "run_evaluation",
    "score_table",
]
