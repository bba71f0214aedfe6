# SPDX-License-Identifier: Apache-2.0
"""Generators, their stores, and what filters say of them: made by the bundle, once; a killed run continues."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.command_line import bundle_command
from benchmarks.fulora.images import Images, run
from medcf.bundle import bundle_folder
from medcf.data import SyntheticStore
from medcf.metrics.frechet import frechet_distance
from medcf.networks import SonoNet
from medcf.runtime.weights import load_weights

__all__ = ["GUIDANCE", "Generator", "distances", "filtered", "generator", "judge_features", "store"]

logger = logging.getLogger(__name__)

#: Ids of ``inference.json``.
GUIDANCE: dict[str, dict[str, float]] = {
    "none": {"guidance_scale": 1.0, "classifier_scale": 0.0},
    "free": {"guidance_scale": 2.0, "classifier_scale": 0.0},
    "classifier": {"guidance_scale": 1.0, "classifier_scale": 1.0},
    "both": {"guidance_scale": 2.0, "classifier_scale": 1.0},
}


@dataclass(frozen=True)
class Generator:
    """A diffusion model and the classifier of noisy images that guides it."""

    model: Path
    guide: Path

    @classmethod
    def of_bundle(cls) -> Generator:
        """Return the bundle's, which other subjects taught."""
        models = bundle_folder("fetalplanes") / "models"
        return cls(models / "model.pt", models / "guide.pt")


def generator(folder: Path, data: Mapping[str, Any], steps: Mapping[str, int], ids: Mapping[str, Any]) -> Generator:
    """Train a generator on the real images of a study, and its guide on the same ones.

    Args:
        folder: for both.
        data: ids that say which images.
        steps: gradient steps of ``model`` and ``guide``.
        ids: further ids of the bundle's configs.
    """
    made = Generator(folder / "model.pt", folder / "guide.pt")
    for file, overlays in ((made.model, ()), (made.guide, ("train_guide.json",))):
        given = {**data, **ids, "iterations": steps[file.stem], "export_path": file}
        if overlays:  # of the model's training alone
            given.pop("pretrained", None)
        _once(file, folder / f"training_{file.stem}", ["train.json", *overlays], given)
    return made


def store(folder: Path, made: Generator, guidance: str, count: int, ids: Mapping[str, Any]) -> SyntheticStore:
    """Generate images of all classes.

    Args:
        folder: of the store.
        made: what draws them.
        guidance: key of ``GUIDANCE``.
        count: images of each class.
        ids: further ids of the bundle's configs.
    """
    given = {"weights#model": made.model, "weights#guide": made.guide, **GUIDANCE[guidance], "count": count, **ids}
    _once(folder / "manifest.csv", folder, ["inference.json"], given)
    return SyntheticStore(folder)


def filtered(made: SyntheticStore, command: Mapping[str, Any]) -> dict[str, SyntheticStore]:
    """Let the bundle's filters judge a store.

    Args:
        made: the store.
        command: ids with which it was made, and of ``filter.json``.

    Returns:
        "good" and "bad" ones.
    """
    _once(made.folder / "filtered.csv", made.folder, ["inference.json", "filter.json"], command)
    return {name: SyntheticStore(made.folder, kept=name == "good") for name in ("good", "bad")}


@torch.no_grad()
def judge_features(images: Images) -> torch.Tensor:
    """Return features (N, D) of the bundle's judge."""
    network = SonoNet(in_channels=1, num_classes=6, features=8, max_features=32)
    judge: Any = load_weights(network, bundle_folder("fetalplanes") / "models" / "judge.pt")
    return torch.cat([judge.features(part).flatten(1) for part in images.image.split(64)])


def distances(images: Images, real: Images, classes: Sequence[int]) -> list[float]:
    """Return the Fréchet distance of each class to real images; NaN with fewer than two images."""
    ours, theirs = judge_features(images), judge_features(real)
    pairs = [(ours[images.label == one], theirs[real.label == one]) for one in classes]
    return [frechet_distance(*pair) if min(map(len, pair)) > 1 else float("nan") for pair in pairs]


def _once(file: Path, folder: Path, configs: Sequence[str], given: Mapping[str, Any]) -> None:
    """Run the bundle for a file that does not exist yet; another command that needs the same waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not file.is_file():
            logger.info("making %s", file)
            run(bundle_command("fetalplanes", configs, {**given, "output_dir": folder}))
