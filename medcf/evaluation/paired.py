# SPDX-License-Identifier: Apache-2.0
"""Measure a method where the truth is known: on pairs of the input and the same subject's image of the target class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from medcf.evaluation.run import run_evaluation
from medcf.inferers import CounterfactualInferer
from medcf.metrics import FlipRatio, MeanQualityDifference, ReIdentification, StructureDice, flip_survival
from medcf.runtime.performance import autocast

__all__ = ["GroundTruthEvaluation", "balanced_accuracies", "evaluate"]


@dataclass
class GroundTruthEvaluation:
    """Run a method over paired phantoms and say how true its counterfactuals are.

    Attributes:
        inferer: the method; ``explain(images, network, sample_ids)``.
        network: the diffusion network.
        classifier: the explained classifier f, images to logits.
        oracle: independent judge, images to a mapping with ``quality`` in [0, 1].
        segmenter: independent segmenter, images to logits of structures.
        embeddings: descriptors for re-identification by name, images to (B, F).
        structures: label of each structure, by name.
        rank: k of the rank-k re-identification.
        target: the target class.
        amp: explain under autocast, as `medcf.runtime.performance.autocast` says; everything is measured in full
            precision.
    """

    inferer: CounterfactualInferer
    network: nn.Module
    classifier: nn.Module
    oracle: nn.Module
    segmenter: nn.Module
    embeddings: Mapping[str, Callable[[Tensor], Tensor]]
    structures: Mapping[str, int]
    rank: int = 3
    target: int = 1
    amp: bool | Literal["auto"] = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, loader: Iterable[Mapping[str, Any]], device: str | torch.device = "cpu") -> dict[str, Any]:
        """Explain every case and measure it.

        Args:
            loader: batches with ``image`` and ``image_true`` in [-1, 1], (B, C, H, W), the paired truth's
                ``segmentation_true`` (B, 1, H, W), ``subject`` (B,) and ``case``.
            device: where to compute.

        Returns:
            The figures by name. ``input`` beside ``counterfactual`` says what doing nothing would have given.
        """
        flips, quality = FlipRatio(self.target), MeanQualityDifference()
        identity = {name: ReIdentification(self.rank) for name in self.embeddings}
        ceiling = {name: ReIdentification(self.rank) for name in self.embeddings}
        dice = {name: StructureDice(self.structures) for name in ("input", "counterfactual", "truth")}
        survived: dict[str, list[Tensor]] = {}
        passes: list[Tensor] = []
        evaluations = 0
        self.rows = []
        for batch in loader:
            image, truth = batch["image"].to(device), batch["image_true"].to(device)
            with autocast(device, enabled=self.amp):
                result = self.inferer.explain(image, self.network, sample_ids=list(batch["case"]))
            pred = result.image
            passes.append(result.confidences.cpu())
            evaluations += int(result.num_function_evaluations.sum())
            with torch.no_grad():
                before, after = self.classifier(image), self.classifier(pred)
                flips(after, before)
                scores = self.oracle(image)["quality"], self.oracle(pred)["quality"]
                quality(scores[1], scores[0])
                for name, embed in self.embeddings.items():
                    gallery = embed(image)
                    identity[name](embed(pred), gallery, subject=batch["subject"])
                    ceiling[name](embed(truth), gallery, subject=batch["subject"])
                for name, candidate in (("input", image), ("counterfactual", pred), ("truth", truth)):
                    labels = self.segmenter(candidate).argmax(1, keepdim=True)
                    dice[name](labels, batch["segmentation_true"].to(device))
                flipped = (before.argmax(1) != self.target) & (after.argmax(1) == self.target)
                for name, kept in flip_survival(self.classifier, pred, self.target).items():
                    survived.setdefault(name, []).append(kept[flipped].cpu())
            self.rows += self._rows(batch["case"], before, after, scores)
        figures = {
            "cases": len(self.rows),
            "flip_ratio": flips.aggregate(),
            "flips_entered": flips.entered,
            "flips_left_out_already_target": flips.left_out,
            "flip_survival": {name: float(torch.cat(kept).float().mean()) for name, kept in survived.items()},
            "oracle_mqd": quality.aggregate(),
            "oracle_mean_quality_difference": quality.mean_difference,
            "confidence_per_iterate": torch.cat(passes).mean(0).tolist(),
            f"rank_{self.rank}_reidentification": {name: metric.aggregate() for name, metric in identity.items()},
            f"rank_{self.rank}_of_the_paired_truth": {name: metric.aggregate() for name, metric in ceiling.items()},
            "mean_cosine_to_input": {name: metric.mean_similarity for name, metric in identity.items()},
            "dice_to_paired_truth": {name: metric.aggregate() for name, metric in dice.items()},
            "network_evaluations_per_case": evaluations / max(len(self.rows), 1),
        }
        for name, metric in identity.items():
            for row, hit in zip(self.rows, metric.hits.tolist(), strict=True):
                row[f"reidentified_by_{name}"] = hit
        return figures

    def _rows(
        self, cases: Iterable[str], before: Tensor, after: Tensor, scores: tuple[Tensor, Tensor]
    ) -> list[dict[str, Any]]:
        columns = (
            before.softmax(1)[:, self.target].tolist(),
            after.softmax(1)[:, self.target].tolist(),
            scores[0].tolist(),
            scores[1].tolist(),
        )
        names = ("confidence_before", "confidence_after", "quality_before", "quality_after")
        return [
            {"case": case, **dict(zip(names, values, strict=True))}
            for case, values in zip(cases, zip(*columns, strict=True), strict=True)
        ]


@torch.no_grad()
def balanced_accuracies(
    loader: Iterable[Mapping[str, Any]],
    classifier: nn.Module,
    oracle: nn.Module,
    quality_threshold: float,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Measure the explained classifier and the oracle on labeled images that neither has seen.

    Args:
        loader: batches with ``image`` and ``label``.
        classifier: images to logits.
        oracle: images to a mapping with ``quality``; at or above the threshold it says standard plane.
        quality_threshold: the phantoms' own threshold of a standard plane.
        device: where to compute.

    Returns:
        Balanced accuracy of both, by name.
    """
    labels, decided, judged = [], [], []
    for batch in loader:
        image = batch["image"].to(device)
        labels.append(batch["label"])
        decided.append(classifier(image).argmax(1).cpu())
        judged.append((oracle(image)["quality"] >= quality_threshold).cpu())
    truth = torch.cat(labels).numpy()
    return {
        "classifier": float(balanced_accuracy_score(truth, torch.cat(decided).numpy())),
        "oracle": float(balanced_accuracy_score(truth, torch.cat(judged).numpy())),
    }


def evaluate(
    evaluation: GroundTruthEvaluation,
    pairs: Iterable[Mapping[str, Any]],
    labeled: Iterable[Mapping[str, Any]],
    quality_threshold: float,
    output_dir: str | Path,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Evaluate a method, print the figures and write ``evaluation.json``.

    Args:
        evaluation: the method and its judges.
        pairs: batches of inputs with their paired truth.
        labeled: batches of labeled images of both classes, for the accuracy of the judges.
        quality_threshold: the phantoms' threshold of a standard plane.
        output_dir: folder of ``evaluation.json``.
        device: where to compute.

    Returns:
        The figures.
    """

    def accuracies() -> dict[str, Any]:
        judges = evaluation.classifier, evaluation.oracle
        return {"balanced_accuracy": balanced_accuracies(labeled, *judges, quality_threshold, device)}

    return run_evaluation(evaluation, pairs, output_dir, device, accuracies)
