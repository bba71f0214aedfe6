# SPDX-License-Identifier: Apache-2.0
"""All measurements on a method's counterfactuals, each with its interval over subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.phantoms import CONCEPT_COLUMNS, STRUCTURES
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure, Measure, measured
from benchmarks.counterfactual.task import Task
from medcf.evaluation import Evidence
from medcf.metrics import StructureChanges, StructureDice

__all__ = ["MEASURES", "costs", "measure"]

TARGET = {"target": "@target"}
NETWORK = {"classifier": "@classifier", "target": "@target"}
SIDE = {"y_pred": "segmentation(pred)", "y": "segmentation_true", "organ": "organ"}
CHANGE = {"y_pred": "difference(pred)", "y": "appearance"}


def _mean(of: str, **entry: str) -> dict[str, str]:
    return {"name": "mean", "of": of, **entry}


def _within(place: str) -> dict[str, Any]:
    needs = {"y_pred": "{on}", "y": "image_true", "image": "image", "mask": place}
    return {"name": "relative_truth_error", "needs": needs}


def _distance(name: str, features: str, reference: bool = True) -> dict[str, str]:
    entry = {"name": name, "of": features, "extractor": f"@{features}"}
    return entry | ({"reference": f"@{features} of the target"} if reference else {})


#: Published extractors by name, and what their Fréchet and kernel distances are called.
PUBLISHED = {"inception": ("FID", "KID"), "radimagenet": ("FD(RadImageNet)", "KID(RadImageNet)")}

_VALID, _JUDGED, _TRUTH = "validity, by f", "validity, not by f", "paired truth"
_QUALITY, _REAL = "quality, by the oracle", "to real target images"

MEASURES = (
    Measure("flips", "flips of f", _VALID, "↑", 0, True, {"name": "flip_ratio", **TARGET}),
    Measure("mad", "MAD", _VALID, "↑", 3, metric={"name": "confidence_change", **TARGET}),
    Measure("bkl", "BKL", _VALID, "↓", 3, metric={"name": "bounded_kl", **TARGET}),
    Measure("cout", "COUT", _VALID, "↑", 2, metric={"name": "cout", **NETWORK}),
    Measure("agreement", "flips the judge confirms", _JUDGED, "↑", 0, True,
            {"name": "oracle_agreement", "threshold": "@threshold", **TARGET}),
    Measure("confirmed", "inputs flipped and confirmed", _JUDGED, "↑", 0, True, _mean("confirmed", where="entered")),
    Measure("survival", "flips that survive blur, noise, shift, JPEG", _JUDGED, "↑", 0, True,
            {"name": "flip_survival", **NETWORK}),
    Measure("seeds", "flips that another seed repeats", _JUDGED, "↑", 0, True, {"name": "seed_agreement", **TARGET}),
    Measure("quality", "QD", _QUALITY, "↑", 2, metric=_mean("quality_gain")),
    Measure("mqd", "MQD", _QUALITY, "↑", 3, metric={"name": "mean_quality_difference", "threshold": "@threshold"}),
    *(
        Measure(f"quality_{name}", f"QD {name.replace('_', ' ')}", _QUALITY, "↑", 2,
                metric={"name": "structure_quality_difference", "names": {name: column}})
        for name, column in CONCEPT_COLUMNS.items()
    ),
    Measure("fd_main", f"FD(judge) {_REAL}", "realism", "↓", 2, metric=_distance("frechet_distance", "main")),
    Measure("kd_main", f"KID(judge) {_REAL}, 1000-fold", "realism", "↓", 1,
            metric=_distance("kernel_distance", "main"), scale=1e3),
    Measure("fd_classifier", f"FD(f) {_REAL}", "realism", "↓", 2, metric=_distance("frechet_distance", "own")),
    Measure("fd_inputs", "FD(judge) to the inputs", "realism", "", 2,
            metric=_distance("frechet_distance", "main", reference=False)),
    *(
        Measure(f"{initials}_{name}", f"{label} {_REAL}{', 1000-fold' * (scale > 1)}", "realism", "↓", 1,
                metric=_distance(metric, name), scale=scale, absent=f"no weights (`--{name} FILE`)")
        for name, labels in PUBLISHED.items()
        for (initials, metric, scale), label in zip(
            (("fd", "frechet_distance", 1.0), ("kd", "kernel_distance", 1e3)), labels, strict=True)
    ),
    Measure("rank_main", "rank 3, identity network or judge", "identity", "↑", 0, True,
            {"name": "re_identification", "of": "rank_main", "k": 3}),
    Measure("rank_pixels", "rank 3, pooled pixels", "identity", "↑", 0, True,
            {"name": "re_identification", "of": "rank_pixels", "k": 3}),
    Measure("lost_identity", "identity lost (0 none, 1 anybody else)", "identity", "↓", 2,
            metric={"name": "subject_parameters", "names": "@names", "std": "@std", "read": "lost_identity"}),
    Measure("cosine", "feature cosine", "identity", "", 3, metric={"name": "feature_cosine", "of": "main"}),
    Measure("ssim", "SSIM to the input", "identity", "", 3, metric="ssim"),
    Measure("mse", "MSE to the input", "identity", "", 4, metric="mse"),
    Measure("truth_ratio", "error / doing nothing", _TRUTH, "↓", 2, metric="relative_truth_error"),
    Measure("truth_organ", "the same inside the head", _TRUTH, "↓", 2, metric=_within("organ")),
    Measure("truth_changed", "where a structure changes", _TRUTH, "↓", 2, metric=_within("structure")),
    Measure("effectiveness", "effectiveness e", _TRUTH, "↑", 3, metric="effectiveness"),
    Measure("class_effectiveness", "e(target) - e(own class)", _TRUTH, "↑", 3, metric="class_effectiveness"),
    Measure("amplification", "amplification a", _TRUTH, "↓", 2, metric="amplification"),
    Measure("sharpness", "sharpness / the truth's", _TRUTH, "", 2, metric="sharpness"),
    Measure("cavum_side", "cavum on its side, where the input shows it", _TRUTH, "↑", 0, True,
            {"name": "lateralized", "label": STRUCTURES["cavum"], "where": "side_shown", "needs": SIDE}),
    Measure("truth_ssim", "SSIM", _TRUTH, "↑", 3, metric="truth_similarity"),
    Measure("auprc", "AUPRC of the true change", _TRUTH, "↑", 2, metric={"name": "change_auprc", "needs": CHANGE}),
    Measure("pointing", "pointing game", _TRUTH, "↑", 0, True, {"name": "pointing_game", "needs": CHANGE}),
    *(Measure(f"dice_{name}", f"Dice {name}", _TRUTH, "↑", 2, metric=_mean(f"dice({name})")) for name in STRUCTURES),
    Measure("invented", "structures invented", _TRUTH, "↓", 0, True, _mean("invented")),
    Measure("lost", "structures lost", _TRUTH, "↓", 0, True, _mean("lost")),
    *(
        Measure(f"{name}_error", f"{name.upper()} error, mm", _TRUTH, "↓", 1,
                metric={"name": "biometry_shift", "spacing": "@spacing", "measure": name})
        for name in ("hc", "bpd")
    ),
    Measure("seconds", "seconds per image", "cost", "↓", 2),
    Measure("evaluations", "network evaluations per image", "cost", "↓", 0),
    Measure("peak_mib", "memory above the networks', MiB", "cost", "↓", 0),
)  # fmt: skip


def measure(
    task: Task,
    result: Result,
    again: Result | None = None,
    own: Result | None = None,
    measures: Sequence[Measure] = MEASURES,
) -> dict[str, Figure]:
    """Measure a method's counterfactuals.

    Sets are compared by ALL counterfactuals, valid or not, so that every row has the same number of images.

    Args:
        task: cases and judges.
        result: what the method made of them.
        again: what it made of them with another seed.
        own: what it made of them toward their own class.
        measures: which figures.

    Returns:
        Figures by the keys of ``measures``, and costs; what the task cannot tell is absent.
    """
    return measured(measures, _evidence(task, result, again, own), _given(task)) | costs(result)


def costs(result: Result) -> dict[str, Figure]:
    """Return time and network evaluations per case, and memory."""
    count = len(result.image)
    return {
        "seconds": Figure(result.seconds / count, count=count),
        "evaluations": Figure(float(result.evaluations.double().mean()), count=count),
        "peak_mib": Figure(result.peak_mib, count=count),
    }


def _evidence(task: Task, result: Result, again: Result | None, own: Result | None) -> Evidence:
    cases = task.cases
    networks = {"logits": task.classifier, "judge": task.judge, "oracle": task.oracle, "segmenter": task.segmenter}
    networks |= {"parameters": task.recover, **task.published}
    networks |= dict(zip(("main", "own"), task.extractors.values(), strict=False))
    networks |= dict(zip(("rank_main", "rank_pixels"), task.identity.values(), strict=True))
    return Evidence(
        cases.columns(result.image)
        | {"target": torch.full((len(cases),), task.target)}
        | {name: made.image for name, made in (("again", again), ("own", own)) if made is not None},
        {name: network for name, network in networks.items() if network is not None},
        functions={
            "confirmed": lambda known: known["flipped"] & (known["judge(pred)"] >= task.judge_threshold),
            "dice": _dice,
            "invented": lambda known: _presence(known)[..., 0].logical_and(~_presence(known)[..., 1]).any(1),
            "lost": lambda known: _presence(known)[..., 1].logical_and(~_presence(known)[..., 0]).any(1),
        },
        batch_size=32,
    )


def _given(task: Task) -> dict[str, Any]:
    """What the metrics' options ask for."""
    given: dict[str, Any] = {"target": task.target, "threshold": task.judge_threshold, "classifier": task.classifier}
    given |= {"names": task.parameter_names, "std": task.parameter_std, "spacing": task.spacing}
    extractors = dict(zip(("main", "own"), task.extractors, strict=False)) | {name: name for name in task.published}
    for key, name in extractors.items():
        given |= {key: name, f"{key} of the target": task.reference_features(name)}
    return given


def _dice(cases: Evidence, name: str) -> Tensor:
    metric = StructureDice({name: STRUCTURES[name]})
    scores: Any = metric(cases["segmentation(pred)"], cases["segmentation_true"])
    return scores[:, 0]


def _presence(cases: Evidence) -> Tensor:
    """Whether each structure is there, in the counterfactual and in the truth (N, structures, 2)."""
    changes = StructureChanges(STRUCTURES)
    changes(cases["segmentation(pred)"], cases["segmentation_true"])
    return changes.presence()
