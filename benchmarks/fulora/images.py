# SPDX-License-Identifier: Apache-2.0
"""Images of the experiment: real planes of site A, synthetic ones of adapters, a few of site B, and the test set."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from joblib import Parallel, delayed
from torch import Tensor

from benchmarks.command_line import bundle_command
from medcf.bundle import bundle_folder
from medcf.data import SyntheticStore
from medcf.phantoms import PlanesDataset
from medcf.runtime.fingerprint import sha256

__all__ = [
    "CLASSES",
    "SEEDS",
    "TESTED",
    "TRAINED",
    "Generator",
    "Images",
    "adapter",
    "generate_all",
    "model_folder",
    "models_folder",
    "once",
    "phantom_adapter",
    "phantom_options",
    "planes",
    "run",
    "synthetic",
]

logger = logging.getLogger(__name__)

#: The test set of the paper shows four planes, neither the cervix nor other planes.
TESTED = (1, 1, 1, 1, 0, 0)
#: Its training sets have these four and other ones.
TRAINED = (1, 1, 1, 1, 0, 1)
CLASSES = [label for label, share in enumerate(TRAINED) if share]
#: An adapter sees the first of the real images that classifiers are trained on, and no other ones.
SEEDS = {"A": 11, "B": 12}


@dataclass(frozen=True, eq=False)
class Images:
    """Images (N, 1, H, W) in [-1, 1] and their classes (N,)."""

    image: Tensor
    label: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    def __add__(self, other: Images) -> Images:
        return Images(torch.cat([self.image, other.image]), torch.cat([self.label, other.label]))

    @cached_property
    def digest(self) -> str:
        """What tells these images and classes from others."""
        content = self.image.numpy().tobytes() + self.label.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def of(cls, dataset: Any) -> Images:
        """Stack a dataset."""
        items = [dataset[index] for index in range(len(dataset))]
        return cls(torch.stack([item["image"] for item in items]), torch.stack([item["label"] for item in items]))


@dataclass(frozen=True)
class Generator:
    """What draws a synthetic set, named "SYN", then "_B" for site B, then the rank of its adapter if that is not 8.

    Attributes:
        site: where its adapter was trained; None is the base model, "SYN_BASE".
        rank: of its low-rank adapter; 8, 32 or 128 in the paper.

    Example:
        >>> Generator.of("SYN_B_32")
        Generator(site='B', rank=32)
    """

    site: str | None
    rank: int = 8

    @classmethod
    def of(cls, part: str) -> Generator:
        """Read the name of a set.

        Raises:
            ValueError: if it is none.
        """
        first, *words = part.split("_")
        if first == "SYN" and words == ["BASE"]:
            return cls(None)
        site = words.pop(0) if words[:1] == ["B"] else "A"
        rank = words.pop(0) if words and words[0].isdigit() else "8"
        if first != "SYN" or words:
            raise ValueError(f"{part!r} names no synthetic set: SYN, SYN_32, SYN_B, SYN_BASE and the like do.")
        return cls(site, int(rank))


def planes(
    split: str, count: int, site: str, size: int, cache: Path, seed: int = 0, balance: Sequence[float] = TRAINED
) -> Images:
    """Render planes of a site, one of each subject, without burned-in text."""
    name = f"planes_{split}_{count}_{site}_{size}_{seed}_{''.join(str(int(share)) for share in balance)}.npz"
    options: dict[str, Any] = {"seed": seed, "size": (size, size), "balance": tuple(balance), "captions": False}
    return Images.of(PlanesDataset(split, count, site=site, planes=1, cache_file=cache / name, **options))


def models_folder(ids: Mapping[str, Any]) -> Path:
    """Return the folder of the bundle's weights."""
    return Path(ids.get("models_dir", bundle_folder("fulora") / "models"))


def model_folder(work: Path, ids: Mapping[str, Any]) -> Path:
    """Return the folder for what a base model makes: other weights have another one."""
    file = models_folder(ids) / "model.pt"
    return work / f"model_{sha256(file)[:8] if file.is_file() else 'none'}"


def once(file: Path, folder: Path, configs: Sequence[str], given: Mapping[str, Any]) -> Path:
    """Run the bundle for a file that does not exist yet, and return it; a killed run resumes.

    Args:
        file: what the run writes in the end.
        folder: of the run; another command that needs the same waits.
        configs: of the bundle.
        given: ids of the configs.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not file.is_file():
            logger.info("making %s", folder.name)
            run(bundle_command("fulora", configs, {**given, "output_dir": folder}))
    return file


def adapter(folder: Path, given: Mapping[str, Any]) -> Path:
    """Train an adapter of the bundle's model, once.

    Args:
        folder: of the training.
        given: ids of the bundle's configs.
    """
    configs = ["train.json", "train_lora.json"]
    return once(folder / "adapter.safetensors", folder, configs, given)


def phantom_options(site: str) -> dict[str, Any]:
    """Return the options of a site's phantoms, one plane of each subject, without burned-in text."""
    return {"site": site, "balance": list(TRAINED), "planes": 1, "captions": False}


def phantom_adapter(site: str, rank: int, count: int, views: int, work: Path, ids: Mapping[str, Any]) -> Path:
    """Train an adapter on the first real images of a site.

    Args:
        site: "A" or "B".
        rank: of the adapter.
        count: number of images.
        views: passes over them.
        work: folder for all adapters.
        ids: further ids of the bundle's configs.
    """
    given = {"rank": rank, "num_train": count, "views": views, "phantom_seed": SEEDS[site]}
    given |= {"phantom_options": phantom_options(site), "cache_dir": work / "cache"}
    return adapter(work / f"adapter_{site}_{rank}_{count}_{views}", {**given, **ids})


def synthetic(folder: Path, count: int, adapters: Sequence[Path], ids: Mapping[str, Any]) -> Images:
    """Generate images of all classes, once; a killed run continues.

    Args:
        folder: of the store.
        count: images of each class.
        adapters: none for the base model.
        ids: further ids of the bundle's configs.
    """
    given: dict[str, Any] = {"count": count, "classes": CLASSES, **ids}
    if adapters:
        given["adapter"] = str([str(file) for file in adapters])
    once(folder / "manifest.csv", folder, ["inference.json"], given)
    return Images.of(SyntheticStore(folder))


def generate_all(jobs: Mapping[str, Callable[[], Images]], processes: int) -> dict[str, Images]:
    """Make several sets at a time: each job waits for processes of its own."""
    made = Parallel(n_jobs=processes, prefer="threads")(delayed(job)() for job in jobs.values())
    return dict(zip(jobs, made, strict=True))


def run(command: Sequence[str]) -> None:
    """Run a bundle.

    Raises:
        RuntimeError: if it fails.
    """
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
