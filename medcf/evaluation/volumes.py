# SPDX-License-Identifier: Apache-2.0
"""Measure a method on volumes whose subjects are known in both classes: by direction, by structure, by identity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medcf.inferers import CounterfactualInferer
from medcf.metrics import FlipRatio, OracleAgreement, ReIdentification, RelativeTruthError
from medcf.metrics.volumes import SegmentedVolumes, VolumeChange
from medcf.runtime.performance import autocast

__all__ = ["PairedVolumeEvaluation"]

Figures = dict[str, Any]
_CANDIDATES = ("counterfactual", "input", "truth")


@dataclass
class PairedVolumeEvaluation:
    """Run a method over paired brains and say how true its counterfactuals are.

    Attributes:
        inferer: the method; ``explain(images, network, sample_ids)``, each case to its other class.
        network: the diffusion network.
        classifier: the explained classifier f, images to logits.
        oracle: independent judge, images to logits.
        volumes: independent measurement of the structures.
        structures: label of each structure in the true segmentation, by name, in the order of ``volumes``; the item's
            ``volumes`` and ``volumes_true`` in mm³ have the column label - 1.
        embeddings: descriptors for re-identification by name, images to (B, F).
        rank: k of the rank-k re-identification.
        amp: explain under autocast, as `medcf.runtime.performance.autocast` says; everything is measured in full
            precision.
    """

    inferer: CounterfactualInferer
    network: nn.Module
    classifier: nn.Module
    oracle: nn.Module
    volumes: SegmentedVolumes
    structures: Mapping[str, int]
    embeddings: Mapping[str, Callable[[Tensor], Tensor]]
    rank: int = 1
    amp: bool | Literal["auto"] = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, loader: Iterable[Mapping[str, Any]], device: str | torch.device = "cpu") -> Figures:
        """Explain every case and measure it.

        Args:
            loader: batches with ``image`` and ``image_true`` (B, 1, *spatial) in [-1, 1], ``target`` (B,), ``volumes``
                and ``volumes_true`` (B, K), ``subject`` (B,) and ``case``.
            device: where to compute.

        Returns:
            The figures by name. ``input`` beside ``counterfactual`` says what doing nothing would have given, ``truth``
            what the measurement makes of the true image.
        """
        identity = {name: ReIdentification(self.rank) for name in self.embeddings}
        error = RelativeTruthError()
        changes: dict[str, dict[str, VolumeChange]] = {
            name: {structure: VolumeChange() for structure in self.structures} for name in _CANDIDATES
        }
        flips: dict[int, FlipRatio] = {}
        agreement: dict[int, OracleAgreement] = {}
        self.rows = []
        for batch in loader:
            image, truth = batch["image"].to(device), batch["image_true"].to(device)
            with autocast(device, enabled=self.amp):
                pred = self.inferer.explain(image, self.network, sample_ids=list(batch["case"])).image
            with torch.no_grad():
                error(pred, truth, image=image)
                logits = [self.classifier(each).cpu() for each in (pred, image)]
                judged = [self.oracle(each).cpu() for each in (pred, image)]
                for target in batch["target"].unique().tolist():
                    kept = batch["target"].cpu() == target
                    after, before = (each[kept] for each in logits)
                    flips.setdefault(target, FlipRatio(target))(after, before)
                    judge = agreement.setdefault(target, OracleAgreement(target))
                    judge(judged[0][kept], judged[1][kept], logits=after, input_logits=before)
                for name, embed in self.embeddings.items():
                    identity[name](embed(pred).cpu(), embed(image).cpu(), subject=batch["subject"])
                volumes = dict(
                    zip(_CANDIDATES, (self.volumes(each).cpu() for each in (pred, image, truth)), strict=True)
                )
                self._add_changes(changes, volumes, batch)
                self._add_rows(batch, logits, judged, volumes)
        cases = len(self.rows)
        if not cases:
            raise ValueError("There is no case to evaluate: count must be at least 1.")
        return {
            "cases": cases,
            "flip_ratio": {str(target): metric.aggregate() for target, metric in sorted(flips.items())},
            "flips_the_oracle_confirms": {str(k): metric.aggregate() for k, metric in sorted(agreement.items())},
            "error_to_truth_over_doing_nothing": error.aggregate(),
            f"rank_{self.rank}_reidentification": {name: metric.aggregate() for name, metric in identity.items()},
            "volume_change": {
                name: {structure: _summary(metric) for structure, metric in group.items()}
                for name, group in changes.items()
            },
        }

    def _add_changes(
        self, changes: dict[str, dict[str, VolumeChange]], volumes: Mapping[str, Tensor], batch: Mapping[str, Any]
    ) -> None:
        true = (batch["volumes_true"] - batch["volumes"]).double().cpu()
        for name, group in changes.items():
            found = volumes[name] - volumes["input"]
            for column, (structure, label) in enumerate(self.structures.items()):
                group[structure](found[:, column], true[:, label - 1], target=batch["target"])

    def _add_rows(
        self,
        batch: Mapping[str, Any],
        logits: list[Tensor],
        judged: list[Tensor],
        volumes: Mapping[str, Tensor],
    ) -> None:
        names = list(self.structures)
        for index, case in enumerate(batch["case"]):
            target = int(batch["target"][index])
            row: dict[str, Any] = {"case": case, "target": target}
            for key, scores in (("classifier", logits), ("oracle", judged)):
                after, before = (float(each[index].softmax(0)[target]) for each in scores)
                row |= {f"{key}_before": before, f"{key}_after": after}
            for name in _CANDIDATES:
                values = volumes[name][index].tolist()
                row |= {f"{structure}_mm3_{name}": value for structure, value in zip(names, values, strict=True)}
            self.rows.append(row)


def _summary(metric: VolumeChange) -> Figures:
    """Slope and r over both directions, and the share of the true change in each."""
    gains = {f"gain_to_{target}": metric.of("gain", target=target) for target in metric.targets()}
    both = {name: metric.of(name) for name in ("slope", "correlation")}
    return {**both, **gains, "mean_absolute_error_ml": metric.aggregate() / 1000}
