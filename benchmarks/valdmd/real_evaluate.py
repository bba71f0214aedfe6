# SPDX-License-Identifier: Apache-2.0
"""Healthy counterparts of held-out radiographs: the truth is unknown, so a judge and distances between sets tell."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.axiom_study import AXIOMS, Asked, axiom_figures
from benchmarks.counterfactual.measure import costs
from benchmarks.counterfactual.rows import Row, toward_own_class
from benchmarks.counterfactual.run import Result, Setup, obtain
from benchmarks.counterfactual.studies import uncomputed, without_cost
from benchmarks.counterfactual.tables import Figure, Measure, measured
from benchmarks.counterfactual.task import Cases, Recipe, apply
from benchmarks.valdmd.localized import LUNG, share
from benchmarks.valdmd.measure import own_over_made
from benchmarks.valdmd.real_sets import PROMPTS, Trained
from benchmarks.valdmd.rows import CONTROLS, INVERSION, METHODS, REGENERATED
from benchmarks.valdmd.sections import Section, summary
from benchmarks.valdmd.task import NORMAL, ChestTask
from medcf.evaluation import Evidence
from medcf.inferers.outcome import root_mean_square
from medcf.metrics import FrechetDistance, pooled_pixels
from medcf.metrics.truth import blurred
from medcf.networks.pooled_features import pooled_features
from medcf.runtime.performance import autocast
from medcf.training.datasets import own_dataset

__all__ = ["MEASURES", "RealTask", "axiom_section", "load_task", "measure", "method_section", "network_section"]

logger = logging.getLogger(__name__)

BATCH, BLUR = 32, 1.0
ETIOLOGIES = ("bacteria", "virus")
#: Methods by prompt that are measured here; the others are on phantoms.
PROMPTED = tuple(row for row in METHODS if row.name not in ("diffice", "sdedit_subtracted"))


def _mean(of: str, **entry: str) -> dict[str, str]:
    return {"name": "mean", "of": of, **entry}


def _distance(features: str, extractor: str, reference: str = "") -> dict[str, str]:
    entry = {"name": "frechet_distance", "of": features, "extractor": extractor}
    return entry | ({"reference": reference} if reference else {})


def _tables(key: str, name: str, extractor: str, given: str, absent: str = "") -> tuple[Measure, ...]:
    """Lay Fréchet distances out as the paper's Tables 1 and 2 do; for its "relative difference" see `measure`."""
    first, second = "as Table 1: pneumonia and", "as Table 2: real healthy and"
    return (
        Measure(f"{key}_made", f"generated healthy, {name}", first, "", 2, metric=_distance(key, extractor),
                absent=absent),
        Measure(f"{key}_real", f"real healthy, {name}", first, "", 2, absent=absent),
        Measure(f"{key}_gap", f"absolute difference, {name}", first, "", 2, absent=absent),
        Measure(f"{key}_healthy", f"generated healthy, {name}", second, "↓", 2,
                metric=_distance(key, extractor, given), absent=absent),
    )  # fmt: skip


_VERDICT, _KEPT, _SIMILAR = "the judge's verdict", "what is kept", "as Table 3: pneumonia and generated healthy"
_SIMILARITIES = (("ms_ssim", "MS-SSIM"), ("ssim", "SSIM"))
MEASURES = (
    Measure("judge", "the judge says normal", _VERDICT, "↑", 0, True, _mean("judge_normal")),
    Measure("confidence", "its probability of normal", _VERDICT, "↑", 2, metric=_mean("judge_confidence(pred)")),
    Measure("flips", "flips of f", _VERDICT, "↑", 0, True, _mean("flipped", where="entered")),
    Measure("confirmed", "flips that the judge confirms", _VERDICT, "↑", 0, True,
            _mean("judge_normal", where="flipped")),
    *_tables("judged", "FD(judge)", "judge", "@judged of the healthy"),
    *_tables("inception", "FID", "inception", "@inception of the healthy", "no weights (`--inception FILE`)"),
    *(Measure(key, name, _SIMILAR, "", 3, metric=key) for key, name in _SIMILARITIES),
    *(
        Measure(f"{key}_{kind}", f"{name}, {kind}", _SIMILAR, "", 3, metric={"name": key, "where": f"is_{kind}"})
        for kind in ETIOLOGIES for key, name in _SIMILARITIES
    ),
    Measure("rank_1", "re-identified (rank 1)", _KEPT, "↑", 0, True,
            {"name": "re_identification", "of": "identity", "k": 1}),
    Measure("composition", "change toward the own prompt / toward normal", _KEPT, "↓", 3, metric=_mean("composition")),
    Measure("outside", "share of the change outside the lungs", _KEPT, "↓", 2, metric=_mean("outside_share")),
    Measure("floors", "change / floor of differences", _KEPT, "", 1, metric=_mean("edit_over_floor")),
    Measure("below", "changes below the floor", _KEPT, "↓", 0, True, _mean("below_floor")),
    Measure("seconds", "seconds per image", "cost", "↓", 2),
    Measure("evaluations", "denoiser rows per image", "cost", "↓", 0),
)  # fmt: skip
NETWORKS = (
    Measure("accuracy", "accuracy", "held-out radiographs", "↑", 0, True),
    *(Measure(f"recall_{k}", f"{name} called {name}", "held-out radiographs", "↑", 0, True)
      for k, name in enumerate(("normal", "pneumonia"))),
    Measure("floor", "encoded and decoded, RMS", "held-out radiographs", "↓", 4),
    Measure("difference_floor", "difference of two decoded images, RMS", "held-out radiographs", "↓", 4),
)  # fmt: skip


@dataclass(frozen=True)
class RealTask(ChestTask):
    """What is explained, and who judges it; the cases are the held-out radiographs with pneumonia.

    Attributes:
        everyone: all held-out radiographs, with their ``label``, and ``is_bacteria`` and ``is_virus`` where known.
        before: the same inputs and judges with the phantoms' diffusion model and autoencoder.
        published: "inception", images to (B, 2048), where its weights were given.
    """

    everyone: Cases
    before: ChestTask
    published: Mapping[str, Any]

    @property
    def healthy(self) -> Tensor:
        """Held-out radiographs without pneumonia (M, 1, H, W)."""
        return self.everyone.image[self.everyone.truth["label"] == NORMAL]


def load_task(trained: Trained, count: int | None = None, published: Mapping[str, Any] | None = None) -> RealTask:
    """Read the held-out radiographs and the networks that were trained on the others.

    Args:
        trained: table and weights.
        count: explain at most so many.
        published: extractors by name.
    """
    overrides = {"models_dir": str(trained.models), "class_prompts": list(PROMPTS)}
    phantoms = {f"weights#{name}": str(trained.demo / f"{name}.pt") for name in ("model", "autoencoder")}
    judged = Recipe("valdmd", ("inference.json", "evaluate.json"), overrides).open()
    judged["weights#oracle"] = str(trained.models / "oracle.pt")
    get = judged.get_parsed_content
    everyone = _read(trained.table, get("preprocessing"))
    label = everyone.truth["label"]
    sick = everyone.where((label != NORMAL) & ((label != NORMAL).cumsum(0) <= (len(label) if count is None else count)))
    size = tuple(n // 4 for n in everyone.image.shape[2:])
    common: dict[str, Any] = {
        "cases": replace(sick, target=torch.full((len(sick),), NORMAL)),
        "classifier": get("classifier").eval(),
        "judge": get("oracle").eval(),
        "segmenter": get("segmenter").eval(),
        "identity": partial(pooled_pixels, size=size),
        "options": {},
    }
    recipe, before = (Recipe("valdmd", ("inference.json",), ids) for ids in (overrides, overrides | phantoms))
    demo = ChestTask(recipe=before, space=before.open().get_parsed_content("space"), **common)
    return RealTask(
        recipe=recipe, space=get("space"), everyone=everyone, before=demo, published=published or {}, **common
    )


def _read(table: Path, preprocessing: Any) -> Cases:
    data = own_dataset(table, "test", preprocessing)
    items = [data[index] for index in range(len(data))]
    with table.open(newline="", encoding="utf-8") as stream:
        kinds = {row["case"]: row["etiology"] for row in csv.DictReader(stream)}
    names = [str(item["case"]) for item in items]
    return Cases(
        torch.stack([item["image"] for item in items]),
        names,
        [str(item["subject"]) for item in items],
        {
            "label": torch.stack([item["label"] for item in items]),
            **{f"is_{kind}": torch.tensor([kinds[name] == kind for name in names]) for kind in ETIOLOGIES},
        },
    )


def measure(task: RealTask, result: Result, own: Result | None = None, *, before: bool = False) -> dict[str, Figure]:
    """Measure healthy counterparts; intervals are over subjects.

    The paper's "relative absolute difference" is the absolute difference between the distances of the sick images to
    the generated healthy ones and to the real healthy ones.

    Args:
        task: inputs and judges.
        result: what a method made of the inputs.
        own: what it made of them toward the class that f predicts.
        before: whether the phantoms' autoencoder made it, whose floor it is then compared with.
    """
    known = task.before if before else task
    networks = {"judged": partial(pooled_features, task.judge), **task.published}
    cases = Evidence(
        task.cases.columns(result.image) | ({} if own is None else {"own": own.image}),
        {"logits": task.classifier, "judge": task.judge, "segmenter": task.segmenter, "identity": task.identity}
        | networks,
        functions={
            "judge_normal": lambda cases: cases["judge(pred)"].argmax(1) == NORMAL,
            "composition": own_over_made,
            "outside_share": lambda cases: share(cases["pred"] - cases["image"], _outside(cases)),
            "edit_over_floor": lambda cases: _edit(cases) / known.floors["difference_floor"],
            "below_floor": lambda cases: _edit(cases) < known.floors["difference_floor"],
        },
        batch_size=BATCH,
    )
    healthy = {name: apply(network, task.healthy, BATCH) for name, network in networks.items()}
    figures = measured(MEASURES, cases, {f"{name} of the healthy": features for name, features in healthy.items()})
    for name, features in healthy.items():
        metric = FrechetDistance(name, reference=features)
        metric(cases[f"{name}(image)"])
        real = Figure(metric.aggregate(), *metric.interval(groups=task.cases.subject), len(cases))
        gap = Figure(abs(figures[f"{name}_made"].value - real.value), count=len(cases))
        figures |= {f"{name}_real": real, f"{name}_gap": gap}
    return figures | costs(result)


def _edit(cases: Evidence) -> Tensor:
    return root_mean_square(cases["pred"] - cases["image"])


def _outside(cases: Evidence) -> Tensor:
    """Where the phantoms' segmenter sees no lung, heart in front of it included."""
    labels = cases["segmentation(image)"]
    return (labels != LUNG["right"]) & (labels != LUNG["left"])


def method_section(task: RealTask, setup: Setup, work: Path) -> Section:
    """Measure methods before and after the fine-tuning, their own-prompt controls, and what no method made.

    Args:
        task: inputs and judges.
        setup: where to run.
        work: folder of stored results.
    """
    section, shown = Section(MEASURES), []
    old = replace(INVERSION, name=f"{INVERSION.name}_before", label=f"BEFORE fine-tuning: {INVERSION.label}")
    result = obtain(old, task.before.recipe, task.before.cases, setup, work)
    section.add(old.label, measure(task, result, before=True))
    shown.append((old.label, result))
    for row in (*PROMPTED, *CONTROLS):
        result, own = _obtained(task, row, setup, work), None
        if toward_own_class(row) in CONTROLS:
            own = _obtained(task, toward_own_class(row), setup, work)
        section.add(row.label, measure(task, result, own))
        if not row.control:
            shown.append((row.label, result))
        logger.info("%s: measured", row.label)
    smooth = uncomputed(task.cases, blurred(task.cases.image, BLUR))
    section.add(f"control: input blurred by {BLUR:g} pixel", without_cost(measure(task, smooth)))
    section.pictures = shown
    return section


def _obtained(task: RealTask, row: Row, setup: Setup, work: Path) -> Result:
    return obtain(row, task.recipe, task.own_class_cases if row.toward_own_class else task.cases, setup, work)


def network_section(task: RealTask) -> Section:
    """Tell how well f and the judge classify the held-out radiographs, and what the autoencoders lose of them."""
    section, everyone = Section(NETWORKS), task.everyone
    label = everyone.truth["label"]
    for name, network in (("f", task.classifier), ("judge", task.judge)):
        right = apply(network, everyone.image, BATCH).argmax(1) == label
        recalls = {f"recall_{k}": summary(right, everyone, label == k) for k in (0, 1)}
        section.add(name, {"accuracy": summary(right, everyone), **recalls})
    spaces = {"autoencoder": task.space} | (
        {} if task.before is None else {"the phantoms' autoencoder": task.before.space}
    )
    for name, space in spaces.items():
        floors = replace(task, cases=everyone, space=space).floors
        section.add(name, {key: summary(values, everyone) for key, values in floors.items()})
    return section


def axiom_section(task: RealTask, setup: Setup, count: int = 8) -> Section:
    """Measure composition and reversibility on held-out radiographs of both classes.

    Args:
        task: held-out radiographs; the own class of each is what f says.
        setup: where to run.
        count: number of images, half of each class.
    """
    label = task.everyone.truth["label"]
    kept = torch.zeros(len(label), dtype=torch.bool)
    for k in (0, 1):
        kept[(label == k).nonzero()[: count // 2, 0]] = True
    cases = task.everyone.where(kept)
    own = apply(task.classifier, cases.image, BATCH).argmax(1)
    asked = Asked(task.recipe, cases, own, lambda images: apply(task.classifier, images, BATCH))
    section = Section(AXIOMS)
    for row in (INVERSION, REGENERATED):
        section.add(row.label, axiom_figures(asked, row, setup, Path(), _runner(task.recipe, row, setup)))
        logger.info("%s: axioms measured", row.label)
    return section


def _runner(recipe: Recipe, row: Row, setup: Setup) -> Callable[..., Any]:
    """Return what runs a method as `obtain` does, in this process: twenty short runs are not worth one each."""
    get = recipe.open({**row.overrides, "device": f"$torch.device({setup.device!r})", "seed": setup.seed})
    network, inferer, amp = (get.get_parsed_content(name) for name in ("network", "inferer", "amp"))

    def run(_row: Row, _recipe: Recipe, cases: Cases, *_others: Any) -> Any:
        with autocast(torch.device(setup.device), enabled=amp):
            given = {"sample_ids": cases.case, "target": cases.target, "run_unchanged": True}
            return inferer.explain(cases.image.to(setup.device), network, **given)

    return run
