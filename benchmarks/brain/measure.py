# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured of counterfactual brains, each figure with its interval over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.brain.task import BrainTask
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import apply
from medcf.metrics.agreement import OracleAgreement
from medcf.metrics.base import CaseMetric
from medcf.metrics.frechet import FrechetDistance
from medcf.metrics.identity import ReIdentification
from medcf.metrics.localization import ChangeAUPRC
from medcf.metrics.similarity import MSE, SSIM
from medcf.metrics.truth import RelativeTruthError, TruthSimilarity
from medcf.metrics.volumes import Statistic, VolumeChange

__all__ = ["MEASURES", "measure"]

BATCH = 8
CLASSES = ("CN", "AD")
STRUCTURES = ("ventricles", "hippocampi")
Groups = Sequence[str]
_STATISTICS: dict[str, Statistic] = {"slope": "slope", "r": "correlation", "error": "error"}


def _volume_measures(name: str) -> tuple[Measure, ...]:
    theme = f"{name}: change of volume against the true change"
    both = (Measure(f"{name}_slope", "slope", theme, "", 2), Measure(f"{name}_r", "r", theme, "↑", 2))
    each = (
        measure
        for target, way in enumerate(("AD to CN", "CN to AD"))
        for measure in (
            Measure(f"{name}_gain_{target}", f"{way}: share of the true change", theme, "", 2),
            Measure(f"{name}_r_{target}", f"{way}: r", theme, "↑", 2),
            Measure(f"{name}_change_{target}", f"{way}: mean change, ml", theme, "", 2),
        )
    )
    return (*both, *each, Measure(f"{name}_error", "mean absolute error, ml", theme, "↓", 2))


MEASURES = (
    Measure("ssim", "SSIM to the input", "similarity and classes", "", 3),
    Measure("mse", "MSE to the input, gray values in [0, 1]", "similarity and classes", "", 4),
    Measure("flips", "flips of f", "similarity and classes", "↑", 0, percent=True),
    Measure("agreement", "flips the judge confirms", "similarity and classes", "↑", 0, percent=True),
    Measure("margin", "f's logit margin of the target", "similarity and classes", "↑", 1),
    Measure("judge_margin", "the judge's margin", "similarity and classes", "↑", 1),
    Measure("confidence", "f's probability of the target", "similarity and classes", "↑", 3),
    Measure("judge_confidence", "the judge's", "similarity and classes", "↑", 3),
    Measure("fd_CN_gAD", "rCN2gAD", "Fréchet distances on f's features", "↑", 1),
    Measure("fd_AD_gAD", "rAD2gAD", "Fréchet distances on f's features", "↓", 1),
    Measure("fd_CN_gCN", "rCN2gCN", "Fréchet distances on f's features", "↓", 1),
    Measure("fd_AD_gCN", "rAD2gCN", "Fréchet distances on f's features", "↑", 1),
    Measure("fd", "FD of all", "Fréchet distances on f's features", "↓", 1),
    *(measure for name in STRUCTURES for measure in _volume_measures(name)),
    Measure("auprc", "AUPRC of the change in structure", "paired truth", "↑", 3),
    Measure("auprc_appearance", "AUPRC of the change in gray values", "paired truth", "↑", 3),
    Measure("truth_ratio", "error to the truth / doing nothing", "paired truth", "↓", 2),
    Measure("truth_changed", "the same where a structure changes", "paired truth", "↓", 2),
    Measure("truth_same", "elsewhere in the brain", "paired truth", "↓", 2),
    Measure("truth_ssim", "SSIM to the truth", "paired truth", "↑", 3),
    Measure("rank_inner", "re-identified, the brain's inside alone (rank 1)", "identity", "↑", 0, percent=True),
    Measure("rank_pixels", "re-identified, pooled voxels (rank 1)", "identity", "↑", 0, percent=True),
    Measure("seconds", "seconds a volume", "cost", "↓", 2),
    Measure("evaluations", "rows through the denoiser a volume", "cost", "↓", 0),
    Measure("peak_mib", "memory above the networks', MiB", "cost", "↓", 0),
)


def measure(task: BrainTask, result: Result) -> dict[str, Figure]:
    """Measure a method's counterfactuals; sets are compared by ALL of them, valid or not.

    Args:
        task: cases and judges.
        result: what the method made of them.

    Returns:
        Figures by the keys of ``MEASURES``.
    """
    return {
        **_classes(task, result.image),
        **_distances(task, result.image),
        **_volumes(task, result.image),
        **_truth(task, result.image),
        **_identity(task, result.image),
        "seconds": Figure(result.seconds / len(result.image), count=len(result.image)),
        "evaluations": Figure(float(result.evaluations.double().mean()), count=len(result.image)),
        "peak_mib": Figure(result.peak_mib, count=len(result.image)),
    }


class _Values(CaseMetric):
    """Values that are there already."""

    higher_is_better = True

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        return y_pred


def _figure(metric: CaseMetric, groups: Groups) -> Figure:
    low, high = metric.interval(groups=groups)
    return Figure(metric.aggregate(), low, high, metric.counts().entered)


def _mean(values: Tensor, groups: Groups) -> Figure:
    metric = _Values()
    metric(values.double())
    return _figure(metric, groups)


def _classes(task: BrainTask, images: Tensor) -> dict[str, Figure]:
    groups, inputs, target = task.cases.subject, task.cases.image, task.cases.target
    assert target is not None
    figures = {}
    for key, metric in {"ssim": SSIM(), "mse": MSE()}.items():
        metric(images, inputs)
        figures[key] = _figure(metric, groups)
    after, before = apply(task.classifier, images, BATCH), apply(task.classifier, inputs, BATCH)
    was_target = before.argmax(1) == target
    figures["flips"] = _mean((after.argmax(1) == target).double().masked_fill(was_target, math.nan), groups)
    column = target[:, None]
    logits = [apply(task.judge, each, BATCH) for each in (images, inputs)]
    judged = [each.softmax(1).gather(1, column)[:, 0] for each in logits]
    for key, each in (("margin", after), ("judge_margin", logits[0])):
        figures[key] = _mean((each.gather(1, column) - each.gather(1, 1 - column))[:, 0], groups)
    agreement = OracleAgreement(target, threshold=0.5)
    agreement(judged[0], judged[1], logits=after, input_logits=before)
    figures["agreement"] = _figure(agreement, groups)
    figures["confidence"] = _mean(after.softmax(1).gather(1, column)[:, 0], groups)
    figures["judge_confidence"] = _mean(judged[0], groups)
    return figures


def _distances(task: BrainTask, images: Tensor) -> dict[str, Figure]:
    """The paper's four cross-distances between real and generated classes, and the distance of all to all."""
    target = task.cases.target
    generated = apply(task.features, images, BATCH)
    real = task.reference_features
    figures = {}
    for made, made_name in enumerate(CLASSES):
        kept = target == made
        subjects = [subject for subject, keep in zip(task.cases.subject, kept.tolist(), strict=True) if keep]
        for label, name in enumerate(CLASSES):
            metric = FrechetDistance("classifier", reference=real[label])
            metric(generated[kept])
            figures[f"fd_{name}_g{made_name}"] = _figure(metric, subjects)
    metric = FrechetDistance("classifier", reference=torch.cat(list(real.values())))
    metric(generated)
    figures["fd"] = _figure(metric, task.cases.subject)
    return figures


def _volumes(task: BrainTask, images: Tensor) -> dict[str, Figure]:
    """Measured change of volume against the true one, both ways together and each alone."""
    groups, truth, target = task.cases.subject, task.cases.truth, task.cases.target
    before, after = apply(task.volumes, task.cases.image, BATCH), apply(task.volumes, images, BATCH)
    figures = {}
    for name in STRUCTURES:
        column = task.structure(name)
        found, true = (after - before)[:, column] / 1000, (truth["volumes"] - truth["volumes_before"])[:, column] / 1000
        metric = VolumeChange()
        metric(found, true, target=target)

        def figure(statistic: Statistic, way: int | None = None, metric: VolumeChange = metric) -> Figure:
            low, high = metric.interval_of(statistic, target=way, groups=groups)
            return Figure(metric.of(statistic, target=way), low, high, len(groups))

        figures |= {f"{name}_{key}": figure(kind) for key, kind in _STATISTICS.items()}
        for way in (0, 1):
            figures[f"{name}_gain_{way}"] = figure("gain", way)
            figures[f"{name}_r_{way}"] = figure("correlation", way)
            figures[f"{name}_change_{way}"] = _mean(found.masked_fill(target != way, math.nan), groups)
    return figures


def _truth(task: BrainTask, images: Tensor) -> dict[str, Figure]:
    groups, truth, inputs = task.cases.subject, task.cases.truth, task.cases.image
    ratio, similarity = RelativeTruthError(), TruthSimilarity()
    ratio(images, truth["image"], image=inputs)
    similarity(images, truth["image"])
    figures = {"truth_ratio": _figure(ratio, groups), "truth_ssim": _figure(similarity, groups)}
    for key, place in (("truth_changed", truth["structure"]), ("truth_same", truth["brain"] & ~truth["structure"])):
        error = RelativeTruthError(smoothing=0)
        found, before = (each.where(place, truth["image"]) for each in (images, inputs))
        error(found, truth["image"], image=before)
        figures[key] = _figure(error, groups)
    change = (images - inputs).abs()
    for key, kind in (("auprc", "structure"), ("auprc_appearance", "appearance")):
        metric = ChangeAUPRC()
        metric(change, truth[kind], mask=truth["brain"])
        figures[key] = _figure(metric, groups)
    return figures


def _identity(task: BrainTask, images: Tensor) -> dict[str, Figure]:
    groups, figures = task.cases.subject, {}
    names = sorted(set(groups))
    subject = torch.tensor([names.index(name) for name in groups])
    for key, embed in zip(("rank_inner", "rank_pixels"), task.identity.values(), strict=True):
        rank = ReIdentification(1)
        rank(apply(embed, images, BATCH), apply(embed, task.cases.image, BATCH), subject=subject)
        figures[key] = _figure(rank, groups)
    return figures
