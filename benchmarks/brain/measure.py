# SPDX-License-Identifier: Apache-2.0
"""All measurements on counterfactual brains, each with its interval over subjects."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.brain.task import BrainTask
from benchmarks.counterfactual.measure import costs
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure, Measure, measured
from medcf.evaluation import Evidence
from medcf.phantoms import TISSUES

__all__ = ["MEASURES", "SUBGROUPS", "measure", "measure_group"]

CLASSES = ("CN", "AD")
STRUCTURES = ("ventricles", "hippocampi")
_CLASSES, _TRUTH, _DISTANCES = "similarity and classes", "paired truth", "Fréchet distances on f's features"


def _mean(of: str, **entry: str) -> dict[str, str]:
    return {"name": "mean", "of": of, **entry}


def _distance(made: str | None, reference: str) -> dict[str, Any]:
    entry = {"name": "frechet_distance", "extractor": "classifier", "reference": f"@{reference}"}
    return entry if made is None else {**entry, "where": f"to_{made}"}


def _error(place: str) -> dict[str, Any]:
    needs = {"y_pred": "{on}", "y": "image_true", "image": "image", "mask": place}
    return {"name": "relative_truth_error", "smoothing": 0, "needs": needs}


def _found(change: str) -> dict[str, Any]:
    return {"name": "change_auprc", "needs": {"y_pred": "difference(pred)", "y": change, "mask": "brain"}}


def _volume_measures(name: str) -> tuple[Measure, ...]:
    theme = f"{name}: change of volume against the true change"

    def change(statistic: str, direction: int | None = None) -> dict[str, Any]:
        return {"name": "volume_change", "of": name, "statistic": statistic, "direction": direction}

    both = (
        Measure(f"{name}_slope", "slope", theme, "", 2, metric=change("slope")),
        Measure(f"{name}_r", "r", theme, "↑", 2, metric=change("correlation")),
    )
    each = (
        measure
        for target, way in enumerate(("AD to CN", "CN to AD"))
        for measure in (
            Measure(f"{name}_gain_{target}", f"{way}: share of the true change", theme, "", 2,
                    metric=change("gain", target)),
            Measure(f"{name}_r_{target}", f"{way}: r", theme, "↑", 2, metric=change("correlation", target)),
            Measure(f"{name}_change_{target}", f"{way}: mean change, ml", theme, "", 2,
                    metric=_mean(f"volume_change(pred, {name})", where=f"to_{CLASSES[target]}")),
        )
    )  # fmt: skip
    return (*both, *each, Measure(f"{name}_error", "mean absolute error, ml", theme, "↓", 2, metric=change("error")))


MEASURES = (
    Measure("ssim", "SSIM to the input", _CLASSES, "", 3, metric="ssim"),
    Measure("mse", "MSE to the input, gray values in [0, 1]", _CLASSES, "", 4, metric="mse"),
    Measure("flips", "flips of f", _CLASSES, "↑", 0, True, _mean("flipped", where="entered")),
    Measure("agreement", "flips the judge confirms", _CLASSES, "↑", 0, True,
            {"name": "oracle_agreement", "of": "judge_confidence", "target": "@target", "threshold": 0.5}),
    Measure("margin", "f's logit margin of the target", _CLASSES, "↑", 1, metric=_mean("margin(pred)")),
    Measure("judge_margin", "the judge's margin", _CLASSES, "↑", 1, metric=_mean("judge_margin(pred)")),
    Measure("confidence", "f's probability of the target", _CLASSES, "↑", 3, metric=_mean("confidence(pred)")),
    Measure("judge_confidence", "the judge's", _CLASSES, "↑", 3, metric=_mean("judge_confidence(pred)")),
    Measure("fd_CN_gAD", "rCN2gAD", _DISTANCES, "↑", 1, metric=_distance("AD", "CN")),
    Measure("fd_AD_gAD", "rAD2gAD", _DISTANCES, "↓", 1, metric=_distance("AD", "AD")),
    Measure("fd_CN_gCN", "rCN2gCN", _DISTANCES, "↓", 1, metric=_distance("CN", "CN")),
    Measure("fd_AD_gCN", "rAD2gCN", _DISTANCES, "↑", 1, metric=_distance("CN", "AD")),
    Measure("fd", "FD of all", _DISTANCES, "↓", 1, metric=_distance(None, "all")),
    *(measure for name in STRUCTURES for measure in _volume_measures(name)),
    Measure("auprc", "AUPRC of the change in structure", _TRUTH, "↑", 3, metric=_found("structure")),
    Measure("auprc_appearance", "AUPRC of the change in gray values", _TRUTH, "↑", 3, metric=_found("appearance")),
    Measure("truth_ratio", "error to the truth / doing nothing", _TRUTH, "↓", 2, metric="relative_truth_error"),
    Measure("truth_changed", "the same where a structure changes", _TRUTH, "↓", 2, metric=_error("structure")),
    Measure("truth_same", "elsewhere in the brain", _TRUTH, "↓", 2, metric=_error("elsewhere")),
    Measure("effectiveness", "effectiveness e", _TRUTH, "↑", 3, metric="effectiveness"),
    Measure("class_effectiveness", "e(target) - e(own class)", _TRUTH, "↑", 3, metric="class_effectiveness"),
    Measure("amplification", "amplification a", _TRUTH, "↓", 2, metric="amplification"),
    Measure("sharpness", "sharpness in the brain / the truth's", _TRUTH, "", 2,
            metric={"name": "sharpness", "needs": {"y_pred": "{on}", "y": "image_true", "mask": "brain"}}),
    Measure("truth_ssim", "SSIM to the truth", _TRUTH, "↑", 3, metric="truth_similarity"),
    Measure("rank_inner", "re-identified, the brain's inside alone (rank 1)", "identity", "↑", 0, True,
            {"name": "re_identification", "of": "rank_inner", "k": 1}),
    Measure("rank_pixels", "re-identified, pooled voxels (rank 1)", "identity", "↑", 0, True,
            {"name": "re_identification", "of": "rank_pixels", "k": 1}),
    Measure("seconds", "seconds per volume", "cost", "↓", 2),
    Measure("evaluations", "denoiser rows per volume", "cost", "↓", 0),
    Measure("peak_mib", "memory above the networks', MiB", "cost", "↓", 0),
)  # fmt: skip

#: What is measured of subgroups: validity, and the error by place.
SUBGROUPS = (
    *(replace(each, theme="subgroup") for each in MEASURES if each.key in ("flips", "agreement", "truth_ratio")),
    Measure("truth_brain", "the same inside the brain", "subgroup", "↓", 2, metric=_error("brain")),
    *(replace(each, theme="subgroup") for each in MEASURES if each.key in ("truth_changed", "effectiveness")),
)


def measure(task: BrainTask, result: Result, own: Result | None = None) -> dict[str, Figure]:
    """Measure a method's counterfactuals; sets are compared by ALL of them, valid or not.

    Args:
        task: cases and judges.
        result: what the method made of them.
        own: what it made of them toward their own class.

    Returns:
        Figures by the keys of ``MEASURES``.
    """
    real = task.reference_features
    given = {"target": task.cases.target, "CN": real[0], "AD": real[1], "all": torch.cat(list(real.values()))}
    return measured(MEASURES, _evidence(task, result, own), given) | costs(result)


def measure_group(task: BrainTask, result: Result) -> dict[str, Figure]:
    """Return the figures of ``SUBGROUPS``, which need no reference volumes; arguments as of `measure`."""
    return measured(SUBGROUPS, _evidence(task, result, None), {"target": task.cases.target})


def _evidence(task: BrainTask, result: Result, own: Result | None) -> Evidence:
    networks = {"logits": task.classifier, "judge": task.judge, "features": task.features, "volumes": task.volumes}
    return Evidence(
        task.cases.columns(result.image)
        | {"volumes": task.cases.truth["volumes_before"]}
        | ({} if own is None else {"own": own.image}),
        networks | dict(zip(("rank_inner", "rank_pixels"), task.identity.values(), strict=True)),
        structures={name: label for label, name in enumerate(TISSUES, start=1)},
        functions={
            "elsewhere": lambda known: known["brain"] & ~known["structure"],
            **{f"to_{name}": partial(_towards, number) for number, name in enumerate(CLASSES)},
        },
        batch_size=8,
    )


def _towards(number: int, cases: Evidence) -> Tensor:
    wanted: Tensor = cases["target"] == number
    return wanted
