# SPDX-License-Identifier: Apache-2.0
"""The benchmark on brain phantoms: inputs of both classes whose other state is known, and networks that judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.task import Cases, Recipe, apply
from medcf.metrics import pooled_pixels
from medcf.phantoms import TISSUES, BrainDataset, BrainMRI, BrainState, PairedBrainDataset
from medcf.phantoms.brain.dataset import brain_on_grid

__all__ = ["CHANGED", "BrainTask", "brain_pairs", "brain_task"]

#: Labels whose change is the disease's "structure": sulcal CSF, ventricles and hippocampi.
CHANGED = (1, 4, 5)
RENDERED, OTHER_SEED = 2.0, 2  # mm as in the data set, and a seed of noise that it does not draw
APPEARANCE = 0.2  # of the range [-1, 1]: gray values that truly change by more, about ten times the noise


@dataclass(frozen=True)
class BrainTask:
    """What is explained, and who judges it.

    Attributes:
        recipe: the bundle whose inferer explains.
        cases: inputs (N, 1, X, Y, Z) with their ``target``, the other class; ``truth`` has the paired ``image``,
            ``volumes_before`` and ``volumes`` (N, 5) in mm³, ``structure`` and ``appearance`` of the change, ``brain``,
            the truth with ``other_noise``, and the ``severity`` of the input's disease.
        label: class of each input (N,).
        reference: held-out real images of other subjects by class: 0 CN, 1 AD.
        classifier: f, images to logits.
        features: f's features, images to (B, D).
        judge: independent of f, images to logits.
        volumes: images to the volumes in mm³ of ``TISSUES``, (B, 5), by a segmenter of its own.
        identity: features by name, images to (B, E).
        spacing: voxel spacing in mm.
    """

    recipe: Recipe
    cases: Cases
    label: Tensor
    reference: dict[int, Tensor]
    classifier: Any
    features: Callable[[Tensor], Tensor]
    judge: Any
    volumes: Callable[[Tensor], Tensor]
    identity: dict[str, Callable[[Tensor], Tensor]]
    spacing: float

    @property
    def own_class_cases(self) -> Cases:
        """The cases with the input's own class as target."""
        return replace(self.cases, target=self.label)

    @cached_property
    def reference_features(self) -> dict[int, Tensor]:
        """F's features of the held-out images, by class."""
        return {label: apply(self.features, volumes, 8) for label, volumes in self.reference.items()}

    def structure(self, name: str) -> int:
        """Column of a tissue in the volumes."""
        return TISSUES.index(name)


def brain_task(
    bundle: str = "controlcg",
    *,
    split: str = "test",
    count: int = 64,
    references: int = 200,
    overrides: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> BrainTask:
    """Build the task of the demo bundle.

    Args:
        bundle: a bundle with ``inference.json`` and ``evaluate.json``.
        split: whose phantoms are explained; "test" for figures, "val" to choose settings on.
        count: number of cases, of both classes.
        references: number of held-out images of both classes; subjects of the same split that are no cases.
        overrides: ids of the inference config.
        cache_dir: folder of rendered phantoms.
        progress: show bars while phantoms are rendered.
    """
    changes = dict(overrides or {})
    get = Recipe(bundle, ("inference.json", "evaluate.json"), changes).open().get_parsed_content
    grid: dict[str, Any] = {"size": tuple(get("spatial_size")), "spacing": get("spacing"), "progress": progress}

    def cached(name: str) -> dict[str, Any]:
        return grid | {"cache_file": None if cache_dir is None else cache_dir / f"benchmark_{name}.npz"}

    pairs = list(PairedBrainDataset(split, count, **cached(f"pairs_{split}_{count}")))  # type: ignore[call-overload]
    others = BrainDataset(split, count + references, **cached(f"{split}_{count + references}"))
    held_out = [others[index] for index in range(count, len(others))]
    classifier = get("classifier").eval()
    return BrainTask(
        recipe=Recipe(bundle, ("inference.json",), changes),
        cases=Cases(
            _stack(pairs, "image"),
            [str(item["case"]) for item in pairs],
            [str(int(item["subject"])) for item in pairs],
            _truth(pairs) | {"other_noise": _other_noise(pairs, grid["size"], float(grid["spacing"]))},
            _stack(pairs, "target"),
        ),
        label=_stack(pairs, "label"),
        reference={k: _stack([item for item in held_out if int(item["label"]) == k], "image") for k in (0, 1)},
        classifier=classifier,
        features=get("classifier_features"),
        judge=get("oracle").eval(),
        volumes=get("segmented_volumes"),
        identity={
            "inner voxels": get("identity").features,
            "pooled voxels": partial(pooled_pixels, size=tuple(n // 4 for n in grid["size"])),
        },
        spacing=float(get("spacing")),
    )


def brain_pairs(recipe: Recipe, split: str, count: int, *, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Render other inputs and their truths (N, 1, X, Y, Z), to choose something on; see `phantom_pairs`."""
    get = recipe.open().get_parsed_content
    grid: dict[str, Any] = {"size": tuple(get("spatial_size")), "spacing": get("spacing"), "progress": progress}
    pairs = list(PairedBrainDataset(split, count, **grid))  # type: ignore[call-overload]
    return _stack(pairs, "image"), _stack(pairs, "image_true")


def _other_noise(pairs: list[dict[str, Any]], size: tuple[int, ...], spacing: float) -> Tensor:
    """Render the true other states once more: with other noise than the inputs and the truths."""
    factor = max(round(spacing / RENDERED), 1)
    images = []
    for item in pairs:
        brain = BrainMRI(int(item["subject"]))
        state = BrainState.typical(int(item["target"]))
        fine = {"size": tuple(n * factor for n in size), "spacing": spacing / factor}
        images.append(torch.from_numpy(brain_on_grid(brain.render(state, seed=OTHER_SEED, **fine), factor)[0]))
    return torch.stack(images)[:, None].float() / 127.5 - 1.0


def _truth(pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
    before, after = _stack(pairs, "image"), _stack(pairs, "image_true")
    labels, labels_true = _stack(pairs, "segmentation"), _stack(pairs, "segmentation_true")
    structure = torch.zeros_like(labels, dtype=torch.bool)
    for label in CHANGED:
        structure |= (labels == label) != (labels_true == label)
    brain = (labels > 0) | (labels_true > 0)
    return {
        "image": after,
        "severity": _stack(pairs, "severity"),
        "volumes_before": _stack(pairs, "volumes"),
        "volumes": _stack(pairs, "volumes_true"),
        "structure": structure & brain,
        "appearance": ((after - before).abs() > APPEARANCE) & brain,
        "brain": brain,
    }


def _stack(items: list[dict[str, Any]], name: str) -> Tensor:
    return torch.stack([torch.as_tensor(item[name]) for item in items])
