# SPDX-License-Identifier: Apache-2.0
"""Explain every case of a loader once, measure it with metrics given by name, and write figures and rows."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medcf.evaluation.evidence import Evidence, at_hand
from medcf.evaluation.measurement import Measurement
from medcf.inferers import Method
from medcf.networks.feature_extractors import MissingWeights
from medcf.runtime.atomic import write_json
from medcf.runtime.performance import autocast

__all__ = ["Evaluation", "run_evaluation"]

Loader = Iterable[Mapping[str, Any]]


@dataclass
class Evaluation:
    """What is measured for the cases of a loader, and with which networks.

    Attributes:
        metrics: the metrics, see `Measurement` for their entries, by figure name. Everything a metric needs, in the
            terms of `Evidence`, must be in the loader's batches or be derived from them.
        networks: networks that see the images, by name, see `Evidence`.
        rows: columns of the table of cases, mapped to evidence; a mapping with ``of`` and ``where`` yields null if the
            Boolean column ``where`` is false, and ``{structure}`` in both names yields one column each.
        inferer: the method; ``explain(images, network, sample_ids)``. None measures only the images.
        network: the diffusion network.
        structures: label of each structure in the true segmentation, by name.
        target_names: names for the figures of each target class; by default the class number.
        amp: explain under autocast, see `medcf.runtime.performance.autocast`; all measurements use full precision.
        table: one row per case, after the run.
    """

    metrics: Mapping[str, str | Mapping[str, Any]]
    networks: Mapping[str, Callable[[Tensor], Any] | MissingWeights]
    rows: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    inferer: Method | None = None
    network: nn.Module | None = None
    structures: Mapping[str, int] = field(default_factory=dict)
    target_names: Sequence[str] = ()
    amp: bool | Literal["auto"] = False
    table: list[dict[str, Any]] = field(default_factory=list)

    def run(self, loader: Loader, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Explain every case and measure it.

        Args:
            loader: batches with ``image`` (B, C, *spatial) in [-1, 1], ``case`` and ``subject`` (B), and everything
                else the metrics need: ``image_true``, ``segmentation_true``, ``label``, ``target``, ``volumes``, ...
            device: device for the computation.

        Returns:
            The numbers of ``cases`` and ``subjects``, and the figures by name.

        Raises:
            ValueError: if there is no case, a metric is unknown, or it needs something the cases lack.
        """
        measurements = [Measurement(heading, entry) for heading, entry in self.metrics.items()]
        names = dict(enumerate(self.target_names))
        subjects: set[str] = set()
        self.table = []
        for batch in loader:
            cases = self._explained(batch, device)
            for measurement in measurements:
                measurement.update(cases, names)
            self.table += self._rows(cases)
            subjects.update(cases.subjects)
        if not self.table:
            raise ValueError("There is no case to evaluate: count must be at least 1, and the data must have cases.")
        counts = {"cases": len(self.table), "subjects": len(subjects)}
        figures = {**counts, **{each.heading: each.figures() for each in measurements}}
        for measurement in measurements:
            for name, values in measurement.columns().items():
                for row, value in zip(self.table, values, strict=True):
                    row[name] = value
        return figures

    def _explained(self, batch: Mapping[str, Any], device: str | torch.device) -> Evidence:
        """Collect the facts about a batch; the loader's values take precedence over the method's."""
        columns = {
            name: values.as_subclass(Tensor).to(device) if isinstance(values, Tensor) else values
            for name, values in batch.items()
        }
        if self.inferer is not None:
            with autocast(device, enabled=self.amp):
                result = self.inferer.explain(columns["image"], self.network, sample_ids=list(batch["case"]))
            told, pred = getattr(result, "extras", {}), result.image.as_subclass(Tensor).float()
            columns = {**vars(result), **told, **columns, "pred": pred}
        columns = {name: at_hand(values) for name, values in columns.items()}
        return Evidence(columns, self.networks, structures=self.structures)

    def _rows(self, cases: Evidence) -> list[dict[str, Any]]:
        columns: dict[str, list[Any]] = {"case": [str(case) for case in cases["case"]]}
        for name, source in self.rows.items():
            for structure in self.structures if "{structure}" in name else ("",):
                columns[name.format(structure=structure)] = _values(cases, source, structure)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(cases: Evidence, source: str | Mapping[str, str], structure: str) -> list[Any]:
    of, where = (source, None) if isinstance(source, str) else (source["of"], source["where"])
    values = cases[of.format(structure=structure)]
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if where is None:
        return values
    return [value if kept else None for value, kept in zip(values, cases[where].tolist(), strict=True)]


def run_evaluation(
    evaluation: Evaluation,
    loader: Loader,
    output_dir: str | Path,
    device: str | torch.device = "cpu",
    further: Sequence[tuple[Evaluation, Loader]] = (),
) -> dict[str, Any]:
    """Evaluate a method, print the figures and write ``evaluation.json``, which also holds the rows of all cases.

    Undefined figures, such as the correlation of nothing, are null, because JSON has no NaN.

    Args:
        evaluation: the method, its judges and its metrics.
        loader: batches for ``evaluation.run``.
        output_dir: folder for ``evaluation.json``.
        device: device for the computation.
        further: evaluations of other cases, whose figures are added.

    Returns:
        The figures, with the ``seconds`` they took.

    Raises:
        FileExistsError: if there is an ``evaluation.json`` that no evaluation wrote.
    """
    file = Path(output_dir) / "evaluation.json"
    refuse_foreign(file, "choose another folder with --output_dir")
    start = time.perf_counter()
    figures = evaluation.run(loader, device)
    figures["seconds"] = time.perf_counter() - start
    for other, cases in further:
        found = other.run(cases, device)
        figures |= {name: found[name] for name in other.metrics}
    figures = finite(figures)
    write_json(file, {**figures, "per_case": finite(evaluation.table)})
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return figures


def refuse_foreign(file: Path, remedy: str) -> None:
    """Refuse to replace a file that no evaluation wrote."""
    if file.exists() and '"per_case"' not in file.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{file} was not written by medcf: {remedy}.")


def finite(value: Any) -> Any:
    """Replace non-finite numbers in a nested structure by None."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
