# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a folder of real images: no truth, no concepts, but a judge and real images of the target class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.counterfactual.task import Cases, Recipe, Task, truncate
from medcf.metrics import pooled_pixels
from medcf.networks import SonoNet
from medcf.runtime.weights import load_weights
from medcf.training.datasets import own_dataset

__all__ = ["REAL_TASKS", "real_task"]

#: What a task differs in from the bundle's ``inference.json``: overlays, ids, and whether overlays are removed.
REAL_TASKS: dict[str, dict[str, Any]] = {
    "fetal_us": {
        "configs": ("inference.json",),
        "overrides": {"segmenter_def#out_channels": 2, "predictor_def#in_channels": 3, "shared_options#strength": 0.2},
        "weights": ("model", "segmenter", "classifier"),
        "target": 1,
    },
    "chest_xray": {
        "configs": ("inference.json", "chest_xray.json"),
        "overrides": {},
        "weights": ("model", "classifier"),
        "target": 0,
    },
}
JUDGE_FEATURES = 12


def real_task(
    name: str,
    tables: Path,
    models: Path,
    *,
    split: str = "val",
    count: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Task:
    """Build the task of a folder of real images whose tables and networks were made as the docs say.

    Inputs are the images of the split that are not of the target class; its images of the target class are the
    held-out reference.

    Args:
        name: a key of ``REAL_TASKS``.
        tables: folder with ``planes.csv``.
        models: folder with the trained weights and ``judge.pt``.
        split: "val" for figures, "test" to choose settings on.
        count: at most so many inputs.
        overrides: further ids of the inference config.
    """
    kind = REAL_TASKS[name]
    weights = {f"weights#{part}": str(models / f"{part}.pt") for part in kind["weights"]}
    recipe = Recipe("diffice", kind["configs"], {**kind["overrides"], **weights, **(overrides or {})})
    get = recipe.open().get_parsed_content
    classifier = get("classifier").eval()
    judge = load_weights(
        SonoNet(1, features=JUDGE_FEATURES, max_features=64), models / "judge.pt", remedy="Train it as the docs say."
    ).eval()
    dataset = own_dataset(tables / "planes.csv", split, get("preprocessing"))
    samples = [dataset[index] for index in range(len(dataset))]
    image = torch.stack([sample["image"] for sample in samples])
    label = torch.stack([torch.as_tensor(sample["label"]) for sample in samples])
    names, subjects = ([sample[key] for sample in samples] for key in ("case", "subject"))
    inputs = truncate((label != kind["target"]).nonzero()[:, 0].tolist(), count)
    target = int(kind["target"])
    return Task(
        name=name,
        recipe=recipe,
        cases=Cases(image[inputs], [names[i] for i in inputs], [subjects[i] for i in inputs]),
        target=target,
        reference=image[label == target],
        classifier=classifier,
        judge=lambda images: judge(images).softmax(1)[:, target],
        judge_threshold=0.5,
        extractors={"judge": judge.features, "classifier f": classifier.features},
        identity={"judge": judge.features, "pooled pixels": pooled_pixels},
    )
