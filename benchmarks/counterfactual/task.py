# SPDX-License-Identifier: Apache-2.0
"""Images to explain and their judges: cases, networks, held-out images of the target class."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from medcf.bundle import bundle_folder

__all__ = ["Cases", "Recipe", "Task", "apply", "truncate"]

#: What a truth names as the input does.
PAIRED = ("image", "segmentation", "volumes")


@dataclass(frozen=True)
class Recipe:
    """How to open a bundle, as plain values that travel to another process.

    Attributes:
        bundle: name of the bundle.
        configs: files of its ``configs``, later ones over earlier ones.
        overrides: further ids, for example ``{"shared_options#strength": 0.2}``.
    """

    bundle: str
    configs: tuple[str, ...]
    overrides: dict[str, Any] = field(default_factory=dict)

    def open(self, overrides: Mapping[str, Any] | None = None) -> ConfigParser:
        """Read the configs; components are made by ``get_parsed_content``."""
        root = bundle_folder(self.bundle)
        parser = ConfigParser()
        # overlays add to lists and dictionaries of the first file with "+id", which load_config_files resolves
        parser.update(ConfigParser.load_config_files([str(root / "configs" / name) for name in self.configs]))
        parser.update({"bundle_root": str(root), "progress": False, **self.overrides, **(overrides or {})})
        return parser

    def digest(self, overrides: Mapping[str, Any] | None = None) -> str:
        """Name the content of the configs and of the weights, so that a changed default or network is noticed."""
        root = bundle_folder(self.bundle)
        weights = self.open(overrides).get_parsed_content("weights")
        files = [*(root / "configs" / name for name in self.configs), *(Path(weights[key]) for key in sorted(weights))]
        state = hashlib.sha256()
        for file in files:
            state.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        return state.hexdigest()[:12]


@dataclass(frozen=True)
class Cases:
    """Images on the network's grid, and what is known of them.

    Attributes:
        image: inputs (N, 1, H, W) in [-1, 1].
        case: name of each, which also seeds its noise.
        subject: whose image it is.
        truth: what else is known of each case by name, tensors (N, ...): on phantoms the paired true ``image`` with its
            ``segmentation``, the subject's ``parameters``, ``appearance``, ``structure`` and ``organ`` of the change,
            the truth with ``other_speckle``, and ``side_shown``: whether the input shows which way the head faces.
        target: wanted class of each case (N,); None takes the config's.
    """

    image: Tensor
    case: list[str]
    subject: list[str]
    truth: dict[str, Tensor] = field(default_factory=dict)
    target: Tensor | None = None

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case)

    def columns(self, images: Tensor) -> dict[str, Any]:
        """Return what is known, with counterfactuals (N, 1, *spatial), in the words of `medcf.evaluation.Evidence`."""
        known = {"image": self.image, "pred": images, "case": self.case, "subject": self.subject}
        true = {f"{name}_true" if name in PAIRED else name: values for name, values in self.truth.items()}
        return known | true | ({} if self.target is None else {"target": self.target})

    def where(self, mask: Tensor) -> Cases:
        """Keep the cases (N,) that are true."""
        kept = mask.nonzero()[:, 0].tolist()
        truth = {name: values[mask] for name, values in self.truth.items()}
        target = None if self.target is None else self.target[mask]
        return Cases(self.image[mask], [self.case[i] for i in kept], [self.subject[i] for i in kept], truth, target)


@dataclass(frozen=True)
class Task:
    """A benchmark on one set of cases.

    Attributes:
        name: for headings and files.
        recipe: the bundle whose inferer explains.
        cases: the inputs, none of which any network was trained on.
        target: wanted class.
        reference: held-out real images of the target class (M, 1, H, W), of other subjects than the cases.
        classifier: f, images to logits; has ``features``.
        judge: independent of f, images to the probability that they are of the target class (B,).
        judge_threshold: from which probability on the judge says target.
        extractors: features by name, images to (B, D), for distances between sets; the first is the main one.
        identity: features by name, images to (B, E), for re-identification.
        published: "inception" and "radimagenet", images to (B, 2048), where their weights were given.
        oracle: images to concept scores and quality; None where no concepts are known.
        segmenter: images to logits of structures, independent of f; None where there is none.
        recover: images to the subject's parameters (B, P), whose true values are ``cases.truth["parameters"]``; None
            where no such network exists.
        parameter_names: what they are.
        parameter_std: their spread over the population.
        spacing: pixel spacing in mm.
    """

    name: str
    recipe: Recipe
    cases: Cases
    target: int
    reference: Tensor
    classifier: Any
    judge: Callable[[Tensor], Tensor]
    judge_threshold: float
    extractors: dict[str, Callable[[Tensor], Tensor]]
    identity: dict[str, Callable[[Tensor], Tensor]]
    published: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    oracle: Any = None
    segmenter: Any = None
    recover: Callable[[Tensor], Tensor] | None = None
    parameter_names: Sequence[str] = ()
    parameter_std: Sequence[float] = ()
    spacing: float = 1.0
    _features: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def reference_features(self, name: str) -> Tensor:
        """Return the features (M, D) of the held-out target images by the extractor of this name, computed once."""
        if name not in self._features:
            self._features[name] = apply({**self.extractors, **self.published}[name], self.reference)
        return self._features[name]

    @property
    def own_class_cases(self) -> Cases:
        """The cases with the input's own class as target: of two classes, the one that is not wanted."""
        return replace(self.cases, target=torch.full((len(self.cases),), 1 - self.target))

    def oracle_scores(self, images: Tensor) -> Tensor:
        """Return the oracle's concept scores with the quality as the last column, (B, K + 1)."""
        found = self.oracle(images)
        return torch.cat([found["concepts"], found["quality"][:, None]], dim=1)


def truncate(values: Sequence[Any], count: int | None) -> list[Any]:
    """Return the first ``count`` values, or all."""
    return list(values if count is None else values[:count])


@torch.no_grad()
def apply(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 32) -> Tensor:
    """Apply a network in batches, without gradients.

    Args:
        function: images (B, C, *spatial) to a tensor (B, ...).
        images: (N, C, *spatial).
        batch_size: images at once.

    Returns:
        (N, ...).
    """
    return torch.cat([function(batch) for batch in images.split(batch_size)])
