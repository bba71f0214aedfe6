# SPDX-License-Identifier: Apache-2.0
"""Measure a method on labeled images whose other state nobody knows: the user's own, or phantoms as a check."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from monai.transforms import BoundingRect
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from medcf.inferers import CounterfactualInferer
from medcf.metrics import SSIM, CaseMetric, FrechetDistance, ReIdentification, bootstrap_interval
from medcf.runtime.performance import autocast

__all__ = ["LabeledEvaluation"]

Figures = dict[str, Any]


@dataclass
class LabeledEvaluation:
    """Run a method over labeled images and say what can be said without their truth.

    Nothing here tells a plausible change from the true one: that takes pairs, see
    `medcf.evaluation.volumes.PairedVolumeEvaluation`.

    Attributes:
        inferer: the method; ``explain(images, network, sample_ids)``.
        network: the diffusion network.
        classifier: the explained classifier f, images to logits.
        features: f's features, images to (B, F), for distances between sets.
        class_names: names of the classes.
        embeddings: descriptors for re-identification by name, images to (B, F).
        rank: k of the rank-k re-identification.
        amp: explain under autocast, as `medcf.runtime.performance.autocast` says; everything is measured in full
            precision.
    """

    inferer: CounterfactualInferer
    network: nn.Module
    classifier: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    class_names: Sequence[str]
    embeddings: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    rank: int = 1
    amp: bool | Literal["auto"] = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, loader: Iterable[Mapping[str, Any]], device: str | torch.device = "cpu") -> Figures:
        """Explain every case and measure it.

        Args:
            loader: batches with ``image`` (B, C, *spatial) in [-1, 1], -1 outside of the subject, ``label`` (B,),
                ``subject`` (B) and ``case`` (B).
            device: where to compute.

        Returns:
            The figures by name; those that are means over cases with a 95 % interval over subjects. Similarities are
            of what is not -1 in the input: the MSE of its pixels, for gray values in [0, 1], and the SSIM of the box
            around them. ``set_distances`` compare the real images of a class with those generated towards one (the
            paper's cross-FIDs); ``real_to_real`` is the same between the real classes.

        Raises:
            ValueError: there is no case.
        """
        self.rows = []
        similarity = SSIM()
        identity = {name: ReIdentification(self.rank) for name in self.embeddings}
        real, generated = [], []
        for batch in loader:
            image = batch["image"].to(device)
            with autocast(device, enabled=self.amp):
                result = self.inferer.explain(image, self.network, sample_ids=list(batch["case"]))
            pred = result.image.as_subclass(Tensor).float()
            with torch.no_grad():
                before, after = (self.classifier(each).cpu() for each in (image, pred))
                real.append(self.features(image).cpu())
                generated.append(self.features(pred).cpu())
                for name, embed in self.embeddings.items():
                    identity[name](embed(pred).cpu(), embed(image).cpu(), subject=_numbers(batch["subject"]))
            for one, other in zip(pred.cpu(), image.cpu(), strict=True):
                similarity(*(_boxed(each, other)[None] for each in (one, other)))
            self._add_rows(batch, result.target.cpu(), before, after, _errors(pred, image))
        if not self.rows:
            raise ValueError("There is no case to evaluate: the loader is empty.")
        similarities = similarity.per_case().tolist()
        for row, value in zip(self.rows, similarities, strict=True):
            row["ssim"] = value
        return {
            "cases": len(self.rows),
            "subjects": len({row["subject"] for row in self.rows}),
            "classifier_balanced_accuracy": self._accuracy(),
            **{name: self._means(name) for name in ("flipped", "confidence_before", "confidence_after")},
            "ssim": self._mean([row["ssim"] for row in self.rows]),
            "mse": self._mean([row["mse"] for row in self.rows]),
            f"rank_{self.rank}_reidentification": {name: self._identity(metric) for name, metric in identity.items()},
            "set_distances": self._distances(torch.cat(real), torch.cat(generated)),
        }

    def _add_rows(self, batch: Mapping[str, Any], target: Tensor, before: Tensor, after: Tensor, mse: Tensor) -> None:
        for index, case in enumerate(batch["case"]):
            wanted = int(target[index])
            self.rows.append(
                {
                    "case": str(case),
                    "subject": str(batch["subject"][index]),
                    "label": int(batch["label"][index]),
                    "target": wanted,
                    "predicted_before": int(before[index].argmax()),
                    "predicted_after": int(after[index].argmax()),
                    "confidence_before": float(before[index].softmax(0)[wanted]),
                    "confidence_after": float(after[index].softmax(0)[wanted]),
                    "mse": float(mse[index]),
                }
            )
            row = self.rows[-1]
            entered = row["predicted_before"] != wanted
            row["flipped"] = bool(row["predicted_after"] == wanted) if entered else None

    def _accuracy(self) -> float:
        labels, decided = ([row[name] for row in self.rows] for name in ("label", "predicted_before"))
        return float(balanced_accuracy_score(labels, decided))

    def _means(self, name: str) -> dict[str, Figures]:
        """Mean of a column for each target, over the cases that were not of it."""
        figures = {}
        for target in sorted({row["target"] for row in self.rows}):
            rows = [row for row in self.rows if row["target"] == target and row["flipped"] is not None]
            values = [float(row[name]) for row in rows]
            figures[f"to_{self.class_names[target]}"] = _interval(values, [row["subject"] for row in rows])
        return figures

    def _mean(self, values: Sequence[float]) -> Figures:
        return _interval(list(values), [row["subject"] for row in self.rows])

    def _identity(self, metric: CaseMetric) -> Figures:
        return _interval(metric.per_case().tolist(), [row["subject"] for row in self.rows])

    def _distances(self, real: Tensor, generated: Tensor) -> Figures:
        labels, targets = (torch.tensor([row[name] for row in self.rows]) for name in ("label", "target"))
        names = [name for index, name in enumerate(self.class_names) if bool((labels == index).any())]
        figures: Figures = {"features": int(real.shape[1])}
        for name in names:
            reference = real[labels == self.class_names.index(name)]
            for target, made in enumerate(self.class_names):
                figures[f"real_{name}_to_generated_{made}"] = _distance(generated[targets == target], reference)
                if made in names and made != name:
                    figures[f"real_{name}_to_real_{made}"] = _distance(real[labels == target], reference)
        return figures


def _interval(values: Sequence[float], subjects: Sequence[str]) -> Figures:
    """Mean and its bootstrap interval over subjects."""
    column = torch.tensor(values).double()
    kept = ~column.isnan()
    if not bool(kept.any()):
        return {"mean": None, "interval": None, "cases": 0}
    groups = [subject for subject, keep in zip(subjects, kept.tolist(), strict=True) if keep]
    low, high = bootstrap_interval(lambda sample: float(sample.mean()), column[kept].numpy(), groups=groups)
    return {"mean": float(column[kept].mean()), "interval": [low, high], "cases": int(kept.sum())}


def _distance(generated: Tensor, reference: Tensor) -> Figures | None:
    if min(len(generated), len(reference)) < 2:
        return None
    metric = FrechetDistance("classifier", reference=reference)
    metric(generated)
    return {"distance": metric.aggregate(), "generated": len(generated), "reference": len(reference)}


def _errors(pred: Tensor, image: Tensor) -> Tensor:
    """Mean squared error (B,) within the subject, for gray values in [0, 1]."""
    inside = image > -1
    squares = ((pred - image) / 2) ** 2 * inside
    return (squares.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)).cpu()


def _boxed(image: Tensor, original: Tensor) -> Tensor:
    """Crop (C, *spatial) to the box around what is not -1 in the original."""
    box = BoundingRect(select_fn=lambda values: values > -1)(original)[0]
    if not box.any():
        return image
    return image[(slice(None), *(slice(int(a), int(b)) for a, b in zip(box[::2], box[1::2], strict=True)))]


def _numbers(subjects: Sequence[Any]) -> Tensor:
    """Return one number for each subject of a batch: its own if it is one, else made from its name."""
    return torch.tensor([int(each) if str(each).isdigit() else zlib.crc32(str(each).encode()) for each in subjects])
