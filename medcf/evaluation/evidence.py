# SPDX-License-Identifier: Apache-2.0
"""Facts about cases, by name: from the loader, from the method, and from networks on request."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.transforms import BoundingRect
from torch import Tensor

from medcf.metrics.similarity import SSIM
from medcf.metrics.structures import structure_change
from medcf.networks.feature_extractors import MissingWeights

__all__ = ["FUNCTIONS", "AbsentError", "Evidence", "WeightsAbsentError", "at_hand", "select"]

Function = Callable[..., Any]


class AbsentError(ValueError):
    """Something that neither the cases nor the networks of an evaluation provide."""


class WeightsAbsentError(AbsentError):
    """A network of an evaluation whose weights were not given; the message is a sentence for the table."""


class Evidence:
    """Look up facts about B cases: ``evidence["image"]``, ``evidence["logits(pred)"]``.

    A plain name is a column, such as ``image`` or ``label``; ``name(images)`` applies the network of that name to that
    column; ``name`` or ``name(argument, ...)`` may also be one of ``FUNCTIONS``, which derive values from others.
    Everything is computed once, on first use.

    Args:
        columns: tensors (B, ...) and lists by name. ``image`` holds the inputs and ``pred`` the counterfactuals, both
            (B, C, *spatial) in [-1, 1]; ``image_true`` is the paired truth, ``subject`` the subject of each image,
            ``target`` (B,) the target class, ``again`` the method's result with another seed, ``own`` its result toward
            the input's own class; ``segmentation`` and ``segmentation_true`` are the label maps of input and truth.
        networks: images (B, C, *spatial) to a tensor (B, ...) or a mapping of them, by name. ``logits`` is the
            explained classifier, ``judge`` an independent one, ``oracle`` returns ``quality`` and ``concepts``,
            ``segmenter`` logits of labels, ``volumes`` mm³ (B, K). A `MissingWeights` says why there is none.
        structures: label of each structure in the true segmentation, by name, in the order of the ``volumes``.
        functions: additions to ``FUNCTIONS``: the evidence and the arguments to a column.
        batch_size: number of images passed to a network at once; None passes all of them.

    Example:
        >>> cases = Evidence({"image": torch.zeros(2, 1, 4, 4)}, {"mean": lambda images: images.mean((1, 2, 3))})
        >>> cases["mean(image)"]
        tensor([0., 0.])
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        networks: Mapping[str, Function | MissingWeights] | None = None,
        *,
        structures: Mapping[str, int] | None = None,
        functions: Mapping[str, Function] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.columns = dict(columns)
        self.networks = networks or {}
        self.structures = structures or {}
        self.functions = {**FUNCTIONS, **(functions or {})}
        self.batch_size = batch_size

    def __getitem__(self, name: str) -> Any:
        """Return a column.

        Raises:
            AbsentError: if nothing provides it; the message names what is missing.
            WeightsAbsentError: if a network provides it whose weights were not given.
        """
        if name not in self.columns:
            self.columns[name] = self._computed(name)
        return self.columns[name]

    def __len__(self) -> int:
        """Number of cases."""
        return len(self["image"])

    @property
    def subjects(self) -> list[str]:
        """The subject of each case; if unknown, every case is its own subject."""
        subjects = self.columns.get("subject", self["case"])
        return [str(each) for each in (subjects.tolist() if isinstance(subjects, Tensor) else subjects)]

    def _computed(self, name: str) -> Any:
        function, arguments = _parts(name)
        if function in self.networks and len(arguments) == 1:
            network = self.networks[function]
            if isinstance(network, MissingWeights):
                raise WeightsAbsentError(network.reason)
            return self._applied(network, self[arguments[0]])
        if function in self.functions:
            return self.functions[function](self, *arguments)
        known = sorted({*self.networks, *(each for each in self.columns if "(" not in each)})
        raise AbsentError(f"{name!r} is absent; there are {', '.join(known)}")

    @torch.no_grad()
    def _applied(self, network: Function, images: Tensor) -> Any:
        parts = [network(part) for part in images.split(self.batch_size or len(images))]
        if isinstance(parts[0], Mapping):
            return {key: at_hand(torch.cat([part[key] for part in parts])) for key in parts[0]}
        return at_hand(torch.cat(parts))


def _parts(name: str) -> tuple[str, list[str]]:
    """Split "volume(pred, gm)" into "volume" and its arguments."""
    match = re.fullmatch(r"(\w+)\((.*)\)", name)
    return (match[1], match[2].split(", ")) if match else (name, [])


def at_hand(values: Any) -> Any:
    """Move numbers (B,) or (B, K) to the CPU; images stay on their device, where networks need them."""
    return values.cpu() if isinstance(values, Tensor) and values.ndim < 3 else values


def select(values: Any, kept: Tensor) -> Any:
    """Select the true cases of ``kept`` (B,) from a tensor, a list, or each entry of a mapping."""
    if isinstance(values, Mapping):
        return {key: select(each, kept) for key, each in values.items()}
    if isinstance(values, Tensor):
        return values[kept.to(values.device)]
    return [each for each, keeps in zip(values, kept.tolist(), strict=True) if keeps]


def _of_target(scores: Tensor, target: Tensor) -> Tensor:
    return scores.gather(1, target.long().cpu()[:, None])[:, 0]


def _probability(network: str) -> Function:
    return lambda cases, images: _of_target(cases[f"{network}({images})"].softmax(1), cases["target"])


def _margin(network: str) -> Function:
    """Logit of the target minus that of the other class, for two classes."""

    def margin(cases: Evidence, images: str) -> Tensor:
        logits, target = cases[f"{network}({images})"], cases["target"]
        return _of_target(logits, target) - _of_target(logits, 1 - target)

    return margin


def _volume(cases: Evidence, images: str, structure: str) -> Tensor:
    return cases[f"volumes({images})"][:, list(cases.structures).index(structure)]


def _volume_change(cases: Evidence, images: str, structure: str) -> Tensor:
    """Measured change from the input in ml, (B,)."""
    return (_volume(cases, images, structure) - _volume(cases, "image", structure)) / 1000


def _true_volume_change(cases: Evidence, structure: str) -> Tensor:
    """True change in ml, (B,)."""
    return (cases["volumes_true"] - cases["volumes"]).double()[:, cases.structures[structure] - 1] / 1000


def _structure_change(cases: Evidence, *names: str) -> Tensor:
    """Where a named structure is in only one of the label maps of input and truth; without names, any structure."""
    if "segmentation" not in cases.columns:
        raise AbsentError("'segmentation', the label map of the inputs, is absent")
    labels = [cases.structures[name] for name in names or cases.structures]
    return structure_change(cases["segmentation"], cases["segmentation_true"], labels or None)


def _subject_mse(cases: Evidence) -> Tensor:
    """Mean squared error (B,) within the subject, which is everything not -1, for gray values in [0, 1]."""
    image, pred = cases["image"], cases["pred"]
    inside = image > -1
    squares = ((pred - image) / 2) ** 2 * inside
    return (squares.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)).cpu()


def _subject_ssim(cases: Evidence) -> Tensor:
    """SSIM (B,) for the box around the subject, which is everything not -1 in the input."""
    pairs = zip(cases["pred"].cpu(), cases["image"].cpu(), strict=True)
    return torch.cat(
        [torch.as_tensor(SSIM()(*(_boxed(each, image)[None] for each in (pred, image)))) for pred, image in pairs]
    )


def _boxed(image: Tensor, original: Tensor) -> Tensor:
    box = BoundingRect(select_fn=lambda values: values > -1)(original)[0]
    if not box.any():
        return image
    return image[(slice(None), *(slice(int(a), int(b)) for a, b in zip(box[::2], box[1::2], strict=True)))]


def _subject_number(cases: Evidence) -> Tensor:
    """One number for each case's subject: its id if numeric, otherwise derived from its name."""
    return torch.tensor([int(each) if each.isdigit() else zlib.crc32(each.encode()) for each in cases.subjects])


#: Derived evidence: a name to a function of the evidence and the arguments in parentheses.
FUNCTIONS: dict[str, Function] = {
    "predicted": lambda cases, images: cases[f"logits({images})"].argmax(1),
    "entered": lambda cases: cases["predicted(image)"] != cases["target"],
    "flipped": lambda cases: cases["entered"] & (cases["predicted(pred)"] == cases["target"]),
    "confidence": _probability("logits"),
    "judge_confidence": _probability("judge"),
    "margin": _margin("logits"),
    "judge_margin": _margin("judge"),
    "logits_of_seeds": lambda cases, images: torch.stack([cases[f"logits({images})"], cases["logits(again)"]], dim=1),
    "quality": lambda cases, images: cases[f"oracle({images})"]["quality"],
    "quality_gain": lambda cases: cases["quality(pred)"] - cases["quality(image)"],
    "concepts": lambda cases, images: cases[f"oracle({images})"]["concepts"],
    "segmentation": lambda cases, images: cases[f"segmenter({images})"].argmax(1, keepdim=True),
    "structure_change": _structure_change,
    "difference": lambda cases, images: (cases[images] - cases["image"]).abs(),
    "volume": _volume,
    "volume_change": _volume_change,
    "true_volume_change": _true_volume_change,
    "subject_mse": _subject_mse,
    "subject_ssim": _subject_ssim,
    "subject_name": lambda cases: cases.subjects,
    "subject_number": _subject_number,
}
