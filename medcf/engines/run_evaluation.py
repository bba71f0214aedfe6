# SPDX-License-Identifier: Apache-2.0
"""Run an evaluation as a bundle does: time it, print its figures and write them with the rows of all cases."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from medcf.data.atomic import replace_file

__all__ = ["Evaluation", "run_evaluation"]


class Evaluation(Protocol):
    """What measures a method: `run` gives the figures and leaves a row for every case in ``rows``."""

    rows: list[dict[str, Any]]

    def run(self, loader: Iterable[Mapping[str, Any]], device: str | torch.device = "cpu") -> dict[str, Any]:
        """Explain and measure every case."""
        ...


def run_evaluation(
    evaluation: Evaluation,
    loader: Iterable[Mapping[str, Any]],
    output_dir: str | Path,
    device: str | torch.device = "cpu",
    further: Callable[[], Mapping[str, Any]] = dict,
) -> dict[str, Any]:
    """Evaluate a method, print the figures and write ``evaluation.json``, which has the rows of all cases, too.

    Args:
        evaluation: the method and its judges.
        loader: batches of what ``evaluation.run`` takes.
        output_dir: folder of ``evaluation.json``.
        device: where to compute.
        further: gives figures that stand beside, once the cases are measured.

    Returns:
        The figures, with the ``seconds`` they took.
    """
    start = time.perf_counter()
    figures = evaluation.run(loader, device)
    figures["seconds"] = time.perf_counter() - start
    figures |= further()
    content = json.dumps({**figures, "per_case": evaluation.rows}, indent=2) + "\n"
    replace_file(Path(output_dir) / "evaluation.json", lambda file: file.write(content))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return figures
