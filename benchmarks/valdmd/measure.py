# SPDX-License-Identifier: Apache-2.0
"""All measurements on healthy counterparts, each with its interval over subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.measure import costs
from benchmarks.counterfactual.run import Result
from benchmarks.counterfactual.tables import Figure, Measure, measured
from benchmarks.valdmd.localized import share
from benchmarks.valdmd.task import DEVICE, NORMAL, ChestTask
from medcf.evaluation import Evidence
from medcf.inferers.outcome import root_mean_square
from medcf.metrics.truth import blurred

__all__ = ["MAPS", "MEASURES", "SUBGROUPS", "measure", "measure_map", "own_over_made"]

_VALID, _TRUTH, _MAP, _KEPT = "normal?", "paired truth", "finds the lesion", "keeps the rest"


def _mean(of: str, **entry: str) -> dict[str, str]:
    return {"name": "mean", "of": of, **entry}


def _error(place: str) -> dict[str, Any]:
    needs = {"y_pred": "{on}", "y": "image_true", "image": "image", "mask": place}
    return {"name": "relative_truth_error", "needs": needs}


def _found(name: str, where: str = "") -> dict[str, Any]:
    needs = {"y_pred": "map", "y": "lesion", "mask": "in_lungs"}
    return {"name": name, "needs": needs} | ({"where": where} if where else {})


#: How well a map finds the lesion inside the lungs.
MAPS = (
    Measure("auprc", "AUPRC", _MAP, "↑", 2, metric=_found("change_auprc")),
    Measure("pointing", "pointing game", _MAP, "↑", 0, True, _found("pointing_game")),
    *(
        Measure(f"auprc_{number}", f"AUPRC, {name}", _MAP, "↑", 2, metric=_found("change_auprc", f"is_{number}"))
        for number, name in enumerate(("lung opacity", "COVID-19", "viral pneumonia"), start=1)
    ),
)

MEASURES = (
    Measure("judge", "the judge says normal", _VALID, "↑", 0, True, _mean("judge_normal")),
    Measure("judge_entered", "of those that f calls sick", _VALID, "↑", 0, True,
            _mean("judge_normal", where="entered")),
    Measure("flips", "flips of f", _VALID, "↑", 0, True, _mean("flipped", where="entered")),
    Measure("truth_ratio", "error to the truth / doing nothing", _TRUTH, "↓", 3, metric="relative_truth_error"),
    Measure("truth_lungs", "in the lungs", _TRUTH, "↓", 3, metric=_error("in_lungs")),
    Measure("truth_lesion", "at the lesion", _TRUTH, "↓", 3, metric=_error("lesion")),
    Measure("effectiveness", "effectiveness e", _TRUTH, "↑", 2, metric="effectiveness"),
    Measure("class_effectiveness", "e(target) - e(own prompt)", _TRUTH, "↑", 2, metric="class_effectiveness"),
    Measure("amplification", "amplification a", _TRUTH, "↓", 2, metric="amplification"),
    Measure("sharpness", "sharpness / the truth's", _TRUTH, "", 2, metric="sharpness"),
    *MAPS,
    Measure("rank_1", "re-identified (rank 1)", _KEPT, "↑", 0, True,
            {"name": "re_identification", "of": "identity", "k": 1}),
    Measure("healthy_lung", "change in healthy lung / true change at the lesion", _KEPT, "↓", 2,
            metric=_mean("healthy_change")),
    Measure("outside", "share of the change outside the lungs", _KEPT, "↓", 2, metric=_mean("outside_share")),
    Measure("composition", "change toward the own prompt / toward normal", _KEPT, "↓", 3, metric=_mean("composition")),
    Measure("floors", "change / floor of differences", _KEPT, "", 1, metric=_mean("edit_over_floor")),
    Measure("seconds", "seconds per image", "cost", "↓", 2),
    Measure("evaluations", "denoiser rows per image", "cost", "↓", 0),
    Measure("peak_mib", "memory above the networks', MiB", "cost", "↓", 0),
)  # fmt: skip

_WANTED = ("judge", "truth_ratio", "truth_lesion", "auprc", "healthy_lung", "outside")
#: What is measured of subgroups; devices have figures of their own.
SUBGROUPS = (
    *(Measure(m.key, m.label, "subgroup", m.better, m.digits, m.percent, m.metric) for m in MEASURES
      if m.key in _WANTED),
    Measure("outside_gray", "mean change outside the lungs, gray values", "subgroup", "↓", 4, metric=_mean("outside")),
    Measure("device_contrast", "device's contrast / the input's", "subgroup", "", 2, metric=_mean("device_contrast")),
    Measure("device_change", "mean change on the device, gray values", "subgroup", "↓", 3,
            metric=_mean("device_change")),
    Measure("device_true", "true change there", "subgroup", "", 3, metric=_mean("device_true")),
)  # fmt: skip


def measure(
    task: ChestTask, result: Result, own: Result | None = None, measures: Sequence[Measure] = MEASURES
) -> dict[str, Figure]:
    """Measure a method's healthy counterparts.

    Args:
        task: sick cases and judges.
        result: what the method made of them.
        own: what it made of them toward the class that f predicts.
        measures: which figures.

    Returns:
        Figures by the keys of ``measures``, and costs; what the task cannot tell is absent.
    """
    cases = _evidence(task, result.image, None if own is None else own.image)
    return measured(measures, cases, {}) | costs(result)


def measure_map(task: ChestTask, values: Tensor) -> dict[str, Figure]:
    """Measure how well maps (N, 1, H, W), not negative, find the lesions."""
    cases = _evidence(task, task.cases.image, None)
    cases.columns["map"] = values
    return measured(MAPS, cases, {})


def _evidence(task: ChestTask, images: Tensor, own: Tensor | None) -> Evidence:
    cases = task.cases
    floor = task.floors["difference_floor"]
    return Evidence(
        cases.columns(images) | ({} if own is None else {"own": own}),
        {"logits": task.classifier, "judge": task.judge, "identity": task.identity},
        functions={
            "map": lambda known: blurred((known["pred"] - known["image"]).float(), 1.0).abs(),
            "in_lungs": lambda known: known["lungs"] > 0,
            "judge_normal": lambda known: known["judge(pred)"].argmax(1) == NORMAL,
            "healthy_change": _healthy_change,
            "outside_share": lambda known: share(known["pred"] - known["image"], known["lungs"] == 0),
            "outside": lambda known: _over(known["pred"] - known["image"], known["lungs"] == 0),
            "composition": own_over_made,
            "edit_over_floor": lambda known: root_mean_square(known["pred"] - known["image"]) / floor,
            "device_contrast": lambda known: _contrast(known, "pred") / _contrast(known, "image"),
            "device_change": lambda known: _over(known["pred"] - known["image"], _device(known)),
            "device_true": lambda known: _over(known["image_true"] - known["image"], _device(known)),
            **{f"is_{number}": lambda known, number=number: known["label"] == number for number in (1, 2, 3)},
        },
        batch_size=32,
    )


def _over(change: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute change in a mask, (B,); NaN where it is empty."""
    return (change.abs().double() * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def _healthy_change(known: Evidence) -> Tensor:
    """Change where the lung is healthy, in units of the true change at the lesion; both without grain, (B,)."""
    made, true = (blurred((known[name] - known["image"]).float(), 1.0) for name in ("pred", "image_true"))
    healthy = (known["lungs"] > 0) & ~known["lesion"]
    return _over(made, healthy) / _over(true, known["lesion"])


def own_over_made(known: Evidence) -> Tensor:
    """Change toward the own prompt over the change toward normal, (B,); NaN where the latter is none."""
    own, made = (root_mean_square(known[name] - known["image"]) for name in ("own", "pred"))
    return torch.where(made > 0, own / made, torch.nan)


def _device(known: Evidence) -> Tensor:
    found: Tensor = known["segmentation_before"] == DEVICE
    return found


def _contrast(known: Evidence, images: str) -> Tensor:
    """Return the mean of the device minus that of a ring of two pixels around it, (B,); NaN without a device."""
    device = _device(known).float()
    ring = (torch.nn.functional.max_pool2d(device, 5, 1, 2) - torch.nn.functional.max_pool2d(device, 3, 1, 1)) > 0
    image = known[images].double()
    inside, around = (
        (image * mask).flatten(1).sum(1) / mask.flatten(1).sum(1) for mask in (device.double(), ring.double())
    )
    return inside - around
