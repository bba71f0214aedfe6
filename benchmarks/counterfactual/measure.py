# SPDX-License-Identifier: Apache-2.0
"""Everything that is measured of a method's counterfactuals, each figure with its interval over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.phantoms import CONCEPT_COLUMNS, STRUCTURES
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure, Measure
from benchmarks.counterfactual.task import Task, apply
from medcf.metrics.agreement import OracleAgreement
from medcf.metrics.base import CaseMetric
from medcf.metrics.biometry import BiometryShift
from medcf.metrics.confidence import BoundedKL, MeanAbsoluteDifference
from medcf.metrics.cout import COUT
from medcf.metrics.frechet import FrechetDistance
from medcf.metrics.identity import ReIdentification
from medcf.metrics.kernel_distance import KernelDistance
from medcf.metrics.localization import ChangeAUPRC, PointingGame
from medcf.metrics.quality import MeanQualityDifference, StructureQualityDifference
from medcf.metrics.robustness import FlipSurvival, SeedAgreement
from medcf.metrics.similarity import MSE, SSIM, FeatureCosine
from medcf.metrics.structures import StructureChanges, StructureDice
from medcf.metrics.subject_parameters import SubjectParameters
from medcf.metrics.truth import RelativeTruthError, TruthSimilarity
from medcf.metrics.validity import FlipRatio

__all__ = ["MEASURES", "measure"]

RANK = 3
Groups = Sequence[str]

MEASURES = (
    Measure("flips", "flips of f", "validity, by f", "↑", 0, percent=True),
    Measure("mad", "MAD", "validity, by f", "↑", 3),
    Measure("bkl", "BKL", "validity, by f", "↓", 3),
    Measure("cout", "COUT", "validity, by f", "↑", 2),
    Measure("agreement", "flips the judge confirms", "validity, not by f", "↑", 0, percent=True),
    Measure("confirmed", "inputs flipped and confirmed", "validity, not by f", "↑", 0, percent=True),
    Measure("survival", "flips that survive blur, noise, shift, JPEG", "validity, not by f", "↑", 0, percent=True),
    Measure("seeds", "flips that another seed repeats", "validity, not by f", "↑", 0, percent=True),
    Measure("quality", "QD", "quality, by the oracle", "↑", 2),
    Measure("mqd", "MQD", "quality, by the oracle", "↑", 3),
    *(
        Measure(f"quality_{name}", f"QD {title}", "quality, by the oracle", "↑", 2)
        for name, title in (("thalami", "thalami"), ("cavum", "cavum"), ("fossa_absent", "fossa absent"))
    ),
    Measure("fd_main", "FD(judge) to real target images", "realism", "↓", 2),
    Measure("kd_main", "KID(judge) to real target images, 1000-fold", "realism", "↓", 1),
    Measure("fd_classifier", "FD(f) to real target images", "realism", "↓", 2),
    Measure("fd_inputs", "FD(judge) to the inputs", "realism", "", 2),
    Measure("rank_main", "rank 3, identity network or judge", "identity", "↑", 0, percent=True),
    Measure("rank_pixels", "rank 3, pooled pixels", "identity", "↑", 0, percent=True),
    Measure("lost_identity", "identity lost (0 none, 1 anybody else)", "identity", "↓", 2),
    Measure("cosine", "feature cosine", "identity", "", 3),
    Measure("ssim", "SSIM to the input", "identity", "", 3),
    Measure("mse", "MSE to the input", "identity", "", 4),
    Measure("truth_ratio", "error / doing nothing", "paired truth", "↓", 2),
    Measure("truth_ssim", "SSIM", "paired truth", "↑", 3),
    Measure("auprc", "AUPRC of the true change", "paired truth", "↑", 2),
    Measure("pointing", "pointing game", "paired truth", "↑", 0, percent=True),
    *(Measure(f"dice_{name}", f"Dice {name}", "paired truth", "↑", 2) for name in ("thalami", "cavum", "fossa")),
    Measure("invented", "structures invented", "paired truth", "↓", 0, percent=True),
    Measure("lost", "structures lost", "paired truth", "↓", 0, percent=True),
    Measure("hc_error", "HC error, mm", "paired truth", "↓", 1),
    Measure("bpd_error", "BPD error, mm", "paired truth", "↓", 1),
    Measure("seconds", "seconds an image", "cost", "↓", 2),
    Measure("evaluations", "denoiser forwards an image", "cost", "↓", 0),
    Measure("peak_mib", "memory above the networks', MiB", "cost", "↓", 0),
)


def measure(task: Task, result: Result, again: Result | None = None) -> dict[str, Figure]:
    """Measure a method's counterfactuals.

    Sets are compared by ALL counterfactuals, valid or not, so that every row has the same number of images.

    Args:
        task: cases and judges.
        result: what the method made of them.
        again: what it made of them with another seed.

    Returns:
        Figures by the keys of ``MEASURES``; what the task cannot tell is absent.
    """
    figures = _validity(task, result, again) | _realism(task, result) | _identity(task, result) | _cost(result)
    if task.oracle is not None:
        figures |= _quality(task, result)
    if "image" in task.cases.truth:
        figures |= _truth(task, result)
    return figures


def _figure(metric: CaseMetric, groups: Groups) -> Figure:
    low, high = metric.interval(groups=groups)
    return Figure(metric.aggregate(), low, high, metric.counts().entered)


def _validity(task: Task, result: Result, again: Result | None) -> dict[str, Figure]:
    groups, target, inputs = task.cases.subject, task.target, task.cases.image
    before, after = apply(task.classifier, inputs), apply(task.classifier, result.image)
    figures = {}
    simple: dict[str, Any] = {
        "flips": FlipRatio(target),
        "mad": MeanAbsoluteDifference(target),
        "bkl": BoundedKL(target),
    }
    for key, metric in simple.items():
        metric(after, before)
        figures[key] = _figure(metric, groups)
    by_image: dict[str, Any] = {
        "cout": COUT(task.classifier, target),
        "survival": FlipSurvival(task.classifier, target),
    }
    for key, metric in by_image.items():
        metric(result.image, inputs)
        figures[key] = _figure(metric, groups)
    agreement = OracleAgreement(target, threshold=task.judge_threshold)
    judged = apply(task.judge, inputs), apply(task.judge, result.image)
    agreement(judged[1], judged[0], logits=after, input_logits=before)
    figures["agreement"] = _figure(agreement, groups)
    confirmed = (after.argmax(1) == target) & (judged[1] >= task.judge_threshold)
    figures["confirmed"] = _mean(confirmed.double().masked_fill(before.argmax(1) == target, math.nan), groups)
    if again is not None:
        seeds = SeedAgreement(target)
        seeds(torch.stack([after, apply(task.classifier, again.image)], dim=1), before)
        figures["seeds"] = _figure(seeds, groups)
    return figures


class _Values(CaseMetric):
    """Values that are there already."""

    higher_is_better = True

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        return y_pred


def _mean(values: Tensor, groups: Groups) -> Figure:
    metric = _Values()
    metric(values)
    return _figure(metric, groups)


def _quality(task: Task, result: Result) -> dict[str, Figure]:
    groups = task.cases.subject
    scores = [
        {name: apply(lambda batch, name=name: task.oracle(batch)[name], images) for name in ("quality", "concepts")}
        for images in (task.cases.image, result.image)
    ]
    total, gain = MeanQualityDifference(), _mean(scores[1]["quality"] - scores[0]["quality"], groups)
    total(scores[1]["quality"], scores[0]["quality"])
    structures = StructureQualityDifference(CONCEPT_COLUMNS)
    structures(scores[1]["concepts"], scores[0]["concepts"])
    figures = {"quality": gain, "mqd": _figure(total, groups)}
    for name in CONCEPT_COLUMNS:
        figures[f"quality_{name}"] = _mean(structures.per_case_of(name), groups)
    return figures


def _realism(task: Task, result: Result) -> dict[str, Figure]:
    (main, features), (_, own) = list(task.extractors.items())[:2]
    generated, reference = apply(features, result.image), apply(features, task.reference)
    to_inputs = FrechetDistance(main)
    to_inputs(generated, apply(features, task.cases.image))
    distances: dict[str, Any] = {
        "fd_main": FrechetDistance(main, reference=reference),
        "kd_main": KernelDistance(main, reference=reference),
        "fd_classifier": FrechetDistance("classifier", reference=apply(own, task.reference)),
    }
    distances["fd_main"](generated)
    distances["kd_main"](generated)
    distances["fd_classifier"](apply(own, result.image))
    figures = {
        key: _figure(metric, task.cases.subject) for key, metric in (distances | {"fd_inputs": to_inputs}).items()
    }
    kernel = figures["kd_main"]
    figures["kd_main"] = Figure(1e3 * kernel.value, 1e3 * kernel.low, 1e3 * kernel.high, kernel.count)
    return figures


def _identity(task: Task, result: Result) -> dict[str, Figure]:
    groups, inputs = task.cases.subject, task.cases.image
    names = sorted(set(groups))
    subject = torch.tensor([names.index(name) for name in groups])
    figures = {}
    for key, embed in zip(("rank_main", "rank_pixels"), task.identity.values(), strict=True):
        rank = ReIdentification(RANK)
        rank(apply(embed, result.image), apply(embed, inputs), subject=subject)
        figures[key] = _figure(rank, groups)
    similar: dict[str, Any] = {"ssim": SSIM(), "mse": MSE(), "cosine": FeatureCosine()}
    features = next(iter(task.extractors.values()))
    for key, metric in similar.items():
        pair = (result.image, inputs) if key != "cosine" else (apply(features, result.image), apply(features, inputs))
        metric(*pair)
        figures[key] = _figure(metric, groups)
    if task.recover is not None:
        lost = SubjectParameters(task.parameter_names, task.parameter_std)
        lost(
            apply(task.recover, result.image),
            task.cases.truth["parameters"],
            reference=apply(task.recover, task.cases.truth["image"]),
        )
        low, high = lost.lost_identity_interval(groups=groups)
        figures["lost_identity"] = Figure(lost.lost_identity(), low, high, lost.counts().entered)
    return figures


def _truth(task: Task, result: Result) -> dict[str, Figure]:
    groups, truth, inputs = task.cases.subject, task.cases.truth, task.cases.image
    ratio, similarity = RelativeTruthError(), TruthSimilarity()
    ratio(result.image, truth["image"], image=inputs)
    similarity(result.image, truth["image"])
    figures = {"truth_ratio": _figure(ratio, groups), "truth_ssim": _figure(similarity, groups)}
    change = (result.image - inputs).abs()
    for key, metric in (("auprc", ChangeAUPRC()), ("pointing", PointingGame())):
        metric(change, truth["appearance"])
        figures[key] = _figure(metric, groups)
    if task.segmenter is None:
        return figures
    found = apply(lambda batch: task.segmenter(batch).argmax(1, keepdim=True), result.image)
    dice = StructureDice(STRUCTURES)
    dice(found, truth["segmentation"])
    for index, name in enumerate(STRUCTURES):
        figures[f"dice_{name}"] = _mean(dice.get_buffer()[:, index], groups)
    figures |= _structures(found, truth["segmentation"], groups)
    for name in ("hc", "bpd"):
        biometry = BiometryShift(task.spacing, name)
        biometry(found, truth["segmentation"])
        figures[f"{name}_error"] = _figure(biometry, groups)
    return figures


def _structures(found: Tensor, truth: Tensor, groups: Groups) -> dict[str, Figure]:
    """Share of the cases with a structure that the truth lacks, and of those without one that it has."""
    changes = StructureChanges(STRUCTURES)
    changes(found, truth)
    there, true = changes.presence().unbind(2)
    invented, lost = (there & ~true).any(1), (~there & true).any(1)
    return {"invented": _mean(invented.double(), groups), "lost": _mean(lost.double(), groups)}


def _cost(result: Result) -> dict[str, Figure]:
    count = len(result.image)
    return {
        "seconds": Figure(result.seconds / count, count=count),
        "evaluations": Figure(float(result.evaluations.double().mean()), count=count),
        "peak_mib": Figure(result.peak_mib, count=count),
    }
