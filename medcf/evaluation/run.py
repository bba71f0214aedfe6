# SPDX-License-Identifier: Apache-2.0
"""Run an evaluation as a bundle does: time it, print its figures and write them with the rows of all cases."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from medcf.runtime.atomic import write_json

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

    Figures that do not exist, such as the correlation of nothing, are null, since JSON has no NaN.

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
    figures = _finite({**figures, **further()})
    write_json(Path(output_dir) / "evaluation.json", {**figures, "per_case": _finite(evaluation.rows)})
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return figures


def _finite(value: Any) -> Any:
    """Replace the numbers of a nested structure that are not finite by None."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
