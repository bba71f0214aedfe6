# SPDX-License-Identifier: Apache-2.0
"""Images of the experiment: real planes of site A, synthetic ones of an adapter, a few of site B, and the test set."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command_line import bundle_command
from medcf.data import SyntheticStore
from medcf.data.synthetic_store import is_store
from medcf.phantoms import PlanesDataset

__all__ = ["CLASSES", "TESTED", "Images", "adapter", "planes", "synthetic"]

logger = logging.getLogger(__name__)

#: The test set of the paper shows four planes, neither the cervix nor other planes.
TESTED = (1, 1, 1, 1, 0, 0)
#: Its training sets have these four and other ones.
TRAINED = (1, 1, 1, 1, 0, 1)
CLASSES = [label for label, share in enumerate(TRAINED) if share]


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

    @classmethod
    def of(cls, dataset: Any) -> Images:
        """Stack a dataset."""
        items = [dataset[index] for index in range(len(dataset))]
        return cls(torch.stack([item["image"] for item in items]), torch.stack([item["label"] for item in items]))


def planes(
    split: str, count: int, site: str, size: int, cache: Path, seed: int = 0, balance: Sequence[float] = TRAINED
) -> Images:
    """Render planes of a site, one of each subject, without burned-in text."""
    name = f"planes_{split}_{count}_{site}_{size}_{seed}_{''.join(str(int(share)) for share in balance)}.npz"
    options: dict[str, Any] = {"seed": seed, "size": (size, size), "balance": tuple(balance), "captions": False}
    return Images.of(PlanesDataset(split, count, site=site, planes=1, cache_file=cache / name, **options))


def adapter(site: str, rank: int, work: Path, ids: dict[str, Any]) -> Path:
    """Train an adapter on 100 images of a site, once; a killed training resumes."""
    folder = work / f"adapter_{site}_{rank}"
    file = folder / "adapter.safetensors"
    if not file.is_file():
        options = {"site": site, "balance": list(TRAINED), "planes": 1, "captions": False}
        given = {
            "rank": rank,
            "phantom_options": options,
            "output_dir": folder,
            "cache_dir": work / "cache",
        }
        command = bundle_command("fulora", ["train.json", "train_lora.json"], given | ids)
        logger.info("training the adapter of site %s, rank %d", site, rank)
        _run(command)
    return file


def synthetic(name: str, count: int, adapters: Sequence[Path], work: Path, ids: dict[str, Any]) -> Images:
    """Generate images of all classes, once, with adapters or without; a killed run continues."""
    folder = work / f"store_{name}_{count}"
    given: dict[str, Any] = {"output_dir": folder, "count": count, "classes": CLASSES, **ids}
    if adapters:
        given["adapter"] = str([str(file) for file in adapters])
    if not is_store(folder) or not (folder / "manifest.csv").is_file():
        logger.info("generating %s", name)
        _run(bundle_command("fulora", ["inference.json"], given))
    return Images.of(SyntheticStore(folder))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
