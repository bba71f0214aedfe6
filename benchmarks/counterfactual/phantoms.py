# SPDX-License-Identifier: Apache-2.0
"""The benchmark on phantoms: inputs whose true image of the target class is known, and independently trained judges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.counterfactual.task import Cases, Recipe, Task
from medcf.metrics import pooled_pixels
from medcf.networks.identity import IdentityNetwork
from medcf.phantoms import CONCEPTS, FetalHead, PairedPhantomDataset, PhantomDataset
from medcf.phantoms.head.change import TrueChangeDataset
from medcf.phantoms.head.datasets import native_size, on_grid, to_tensors
from medcf.phantoms.head.identities import subject_parameters
from medcf.runtime.weights import load_weights

__all__ = ["CONCEPT_COLUMNS", "STRUCTURES", "identity_network", "phantom_pairs", "phantom_task"]

#: Labels of the structures that the truth has or has not.
STRUCTURES = {"thalami": 2, "cavum": 3, "fossa": 4}


#: The concepts of structures that the paper reports, and their columns in the oracle's scores.
CONCEPT_COLUMNS = {name: list(CONCEPTS).index(name) for name in ("thalami", "cavum", "fossa_absent")}

#: Pixels of the posterior fossa from which on an input shows which way the head faces.
VISIBLE = 20

#: Held-out standard planes come from another split than the cases, so that no subject is in both.
REFERENCE_SPLIT = "val"


def phantom_task(
    bundle: str = "diffice",
    *,
    split: str = "test",
    count: int = 64,
    references: int = 400,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Task:
    """Build the task of the demo bundle.

    Args:
        bundle: a bundle with ``inference.json`` and ``evaluate.json``.
        split: whose phantoms are explained; "test" for figures, "val" to choose settings on.
        count: number of cases, all non-standard planes.
        references: number of held-out standard planes.
        overrides: ids of the inference config.
        progress: show bars while phantoms are rendered.
    """
    changes = dict(overrides or {})
    judged = Recipe(bundle, ("inference.json", "evaluate.json"), changes).open()
    get = judged.get_parsed_content
    grid: dict[str, Any] = {"size": tuple(get("spatial_size")), "spacing": get("spacing"), "progress": progress}
    pairs = PairedPhantomDataset("fetal_head", split, count, label=0, **grid)
    change = TrueChangeDataset("fetal_head", split, count, label=0, **grid)
    reference = PhantomDataset("fetal_head", REFERENCE_SPLIT, references, sp_fraction=1.0, **grid)
    classifier, oracle = get("classifier").eval(), get("oracle").eval()
    identity, parameters = identity_network(bundle)
    truth = {
        "image": _stack(pairs, "image_true"),
        "segmentation": _stack(pairs, "segmentation_true"),
        "parameters": torch.stack([_parameters(int(item["subject"]), parameters) for item in pairs]),
        **{name: _stack(change, name) for name in ("appearance", "structure", "organ")},
        "other_speckle": torch.stack([_other_speckle(int(item["subject"]), **grid) for item in pairs]),
        "side_shown": (_stack(pairs, "segmentation") == STRUCTURES["fossa"]).flatten(1).sum(1) >= VISIBLE,
    }
    cases = Cases(
        _stack(pairs, "image"),
        [str(item["case"]) for item in pairs],
        [str(int(item["subject"])) for item in pairs],
        truth,
    )
    return Task(
        name="phantoms",
        recipe=Recipe(bundle, ("inference.json",), changes),
        cases=cases,
        target=int(get("target")),
        reference=torch.stack([reference[index]["image"] for index in range(len(reference))]),
        classifier=classifier,
        judge=lambda images: oracle(images)["quality"],
        judge_threshold=get("quality_threshold"),
        extractors={"oracle": oracle.features, "classifier f": classifier.features},
        identity={"identity network": identity.features, "pooled pixels": pooled_pixels},
        oracle=oracle,
        segmenter=get("evaluation_segmenter").eval(),
        recover=lambda images: identity(images)["parameters"],
        parameter_names=parameters,
        parameter_std=identity.std.tolist(),
        spacing=float(get("spacing")),
    )


def phantom_pairs(recipe: Recipe, split: str, count: int, *, progress: bool = True) -> tuple[Tensor, Tensor]:
    """Render other inputs and their truths, to choose or train something on.

    Args:
        recipe: the bundle, whose grid they have.
        split: whose phantoms: "val" to choose, "train" to train.
        count: number of pairs.
        progress: show a bar.

    Returns:
        Inputs and truths (N, 1, H, W) in [-1, 1].
    """
    get = recipe.open().get_parsed_content
    options: dict[str, Any] = {"size": tuple(get("spatial_size")), "spacing": get("spacing"), "progress": progress}
    pairs = PairedPhantomDataset("fetal_head", split, count, label=0, **options)
    return _stack(pairs, "image"), _stack(pairs, "image_true")


def _other_speckle(subject: int, *, size: tuple[int, int], spacing: float, **_: Any) -> Tensor:
    """Render the subject's standard plane once more: with other speckle than the input's and the truth's."""
    native, native_spacing = native_size(size, spacing)
    sample = FetalHead(subject).render(seed=2, size=native, spacing=native_spacing)
    return to_tensors(*on_grid(sample, size))[0]


def identity_network(bundle: str) -> tuple[IdentityNetwork, list[str]]:
    """Load the network that recognizes subjects, and the names of the parameters it recovers."""
    config = Recipe(bundle, ("train.json", "train_identity.json")).open()
    names = list(config["parameters"])
    network = IdentityNetwork(len(names), embedding_size=config["embedding_size"])
    path = str(Path(config.get_parsed_content("bundle_root")) / "models" / "identity.pt")
    return load_weights(network, path, remedy="Train it with train_identity.json over train.json.").eval(), names


def _parameters(seed: int, names: list[str]) -> Tensor:
    return torch.from_numpy(subject_parameters(FetalHead(seed), names))


def _stack(dataset: Any, name: str) -> Tensor:
    return torch.stack([torch.as_tensor(item[name]) for item in dataset])
