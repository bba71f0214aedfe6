# SPDX-License-Identifier: Apache-2.0
"""The benchmark on chest phantoms: sick ones whose healthy state is known, normal ones to put findings into, judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.inferers.outcome import root_mean_square
from medcf.metrics import pooled_pixels
from medcf.phantoms import ChestDataset, ChestState, PairedChestDataset
from medcf.phantoms.chest.dataset import draw_chest

__all__ = ["HEART", "NORMAL", "VISIBLE", "ChestTask", "chest_task", "labeled_chests", "normal_task", "sick_task"]

NORMAL, HEART, DEVICE = 0, 3, 4
#: mm of tissue in place of air from which a place counts as lesion: it changes gray values by 0.1 and more of the range
#: [-1, 1], seven times the grain. Thinner margins of a viral pneumonia reach over both lungs, and nobody can see them.
VISIBLE = 10.0
SICK, HEALTHY = (0.0, 1.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ChestTask:
    """What is explained, and who judges it.

    Attributes:
        recipe: the bundle whose inferer explains.
        cases: inputs (N, 1, H, W); ``truth`` has ``lungs`` (1 the patient's right, 2 the left),
            ``segmentation_before``, ``child``, ``device``, ``label`` and ``heart_ratio``, and of sick ones the healthy
            ``image``, with other grain than the input, and the visible ``lesion``.
        classifier: f, images to logits (B, 4).
        judge: independent of f, images to logits (B, 4).
        segmenter: images to logits of lungs, heart and device.
        space: the latents, for their floors.
        identity: images to (B, E), for re-identification.
        options: of the data set, to render its subjects in other states.
    """

    recipe: Recipe
    cases: Cases
    classifier: Any
    judge: Any
    segmenter: Any
    space: Any
    identity: Callable[[Tensor], Tensor]
    options: dict[str, Any]

    @property
    def own_class_cases(self) -> Cases:
        """The cases with the class that f predicts as target: the label is nothing that a method may know."""
        return replace(self.cases, target=self.predicted)

    @cached_property
    def predicted(self) -> Tensor:
        """Class that f predicts for each input (N,)."""
        return apply(self.classifier, self.cases.image).argmax(1)

    @cached_property
    def floors(self) -> dict[str, Tensor]:
        """Both floors of the autoencoder for each input (N,), root mean squares in fractions of the intensity range."""
        with torch.no_grad():
            found = self.space.floors(self.cases.image)
        return {name: root_mean_square(error) for name, error in found.items()}

    def rendered(self, state: ChestState, count: int | None = None, *, again: bool = True) -> Tensor:
        """Render the first subjects in another state, with their own grain or ``again``: (N, 1, H, W) in [-1, 1]."""
        options = dict(self.options)
        grid = {"collimated": False, **{name: options.pop(name) for name in ("size", "spacing")}}
        split, number = options.pop("split"), len(self.cases) if count is None else count
        samples = [draw_chest(split, i, **options).render(state, again=again, **grid) for i in range(number)]
        return torch.stack([torch.from_numpy(sample.image)[None] * 2 - 1 for sample in samples])


def sick_task(bundle: str = "valdmd", **options: Any) -> ChestTask:
    """Build the task of healthy counterparts, whose target is normal; see `chest_task`."""
    return chest_task(bundle, PairedChestDataset, balance=SICK, **options)


def normal_task(bundle: str = "valdmd", **options: Any) -> ChestTask:
    """Build the task of induction: normal chests without a target, since a prompt says what is asked for."""
    return chest_task(bundle, ChestDataset, balance=HEALTHY, **options)


def chest_task(
    bundle: str,
    kind: type[ChestDataset],
    *,
    balance: tuple[float, ...],
    split: str = "test",
    count: int = 64,
    overrides: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    **drawn: Any,
) -> ChestTask:
    """Build a task of the demo bundle.

    Args:
        bundle: a bundle with ``inference.json`` and ``evaluate.json``.
        kind: `ChestDataset` or `PairedChestDataset`.
        balance: weights of the four classes.
        split: whose phantoms are explained; "test" for figures, "val" to choose settings on.
        count: number of cases.
        overrides: ids of the inference config.
        cache_dir: folder of rendered phantoms.
        drawn: further options of the data set, such as ``confounded`` and ``devices``.
    """
    changes = dict(overrides or {})
    get = Recipe(bundle, ("inference.json", "evaluate.json"), changes).open().get_parsed_content
    options = {"split": split, "balance": balance, "size": tuple(get("spatial_size")), "spacing": get("spacing")}
    items = _items(kind, count, cache_dir, **options, **drawn)
    truth = {
        "lungs": _stack(items, "lungs"),
        "segmentation_before": _stack(items, "segmentation"),
        **{name: _stack(items, name) for name in ("device", "label", "heart_ratio")},
        "child": _stack(items, "age_group"),
    }
    target = None
    if kind is PairedChestDataset:
        truth |= {"image": _stack(items, "image_true"), "lesion": _stack(items, "lesion") >= VISIBLE}
        truth["lesion"] &= truth["lungs"] > 0
        target = torch.full((count,), NORMAL)
    cases = Cases(
        _stack(items, "image"),
        [str(item["case"]) for item in items],
        [str(int(item["subject"])) for item in items],
        truth,
        target,
    )
    return ChestTask(
        recipe=Recipe(bundle, ("inference.json",), changes),
        cases=cases,
        classifier=get("classifier").eval(),
        judge=get("oracle").eval(),
        segmenter=get("segmenter").eval(),
        space=get("space"),
        identity=partial(pooled_pixels, size=tuple(n // 4 for n in options["size"])),
        options=options | drawn,
    )


def labeled_chests(task: ChestTask, count: int, cache_dir: Path | None = None, **drawn: Any) -> dict[str, Tensor]:
    """Render other subjects of the same split: ``image``, ``label``, ``heart_ratio`` (N, ...).

    Args:
        task: whose subjects are left out.
        count: number of images.
        cache_dir: folder of rendered phantoms.
        drawn: options of the data set that differ from the task's.
    """
    items = _items(ChestDataset, count, cache_dir, **{**task.options, "seed": 1, **drawn})
    known = set(task.cases.subject)
    items = [item for item in items if str(int(item["subject"])) not in known]
    return {name: _stack(items, name) for name in ("image", "label", "heart_ratio")}


def _items(kind: type[ChestDataset], count: int, cache_dir: Path | None, **options: Any) -> list[dict[str, Any]]:
    words = [kind.__name__, str(count), *(f"{key}-{value}" for key, value in options.items())]
    name = "_".join("".join(letter for letter in word if letter.isalnum() or letter in "-.") for word in words)
    file = None if cache_dir is None else cache_dir / f"{name}.npz"
    data = kind(count=count, cache_file=file, progress=False, **options)
    return [data[index] for index in range(count)]


def _stack(items: list[dict[str, Any]], name: str) -> Tensor:
    return torch.stack([torch.as_tensor(item[name]) for item in items])
