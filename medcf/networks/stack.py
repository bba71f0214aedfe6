# SPDX-License-Identifier: Apache-2.0
"""The rows of one stacked network call: conditions, their nulls, and the references that attention injection reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from medcf.networks.condition import Condition

__all__ = ["ReferenceCondition", "Stack", "plan_stack"]

ReferenceCondition = Literal["same", "null"]


@dataclass(frozen=True, eq=False)
class Stack:
    """The rows of a stacked network call for N samples and M references.

    Attributes:
        origin: for each row, the image it shows: 0 to N - 1 are the samples, N onward the references.
        labels: class of each row; None for a network without classes.
        contexts: context of each row (tokens, features); None without contexts.
        reference: row whose tokens each row reads in addition to its own; a row that names itself reads only its own.
        levels: for each number of factors that count, from none to all, the row of each sample.
        scales: for each factor, the guidance scale of each sample.
        cost: for each sample, its number of rows; a row that several samples share counts for the first.
    """

    origin: list[int]
    labels: list[int] | None
    contexts: list[Tensor] | None
    reference: list[int]
    levels: list[list[int]]
    scales: list[list[float]]
    cost: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.origin)


def plan_stack(
    factors: Sequence[Condition],
    batch: int,
    *,
    sources: Sequence[int] | None = None,
    reference: ReferenceCondition | None = None,
) -> Stack:
    """Lay out a call: rows with all factors, then those where some count as null, then the references they read.

    Guidance telescopes over the factors c_1 .. c_K with scales s_k: e(none) + sum_k s_k (e(c_1 .. c_k) - e(c_1 ..
    c_k-1)), where a factor that does not count is replaced by its null. With one factor this is classifier-free
    guidance; a factor with scale 1 is held in every row; factors with equal scales are guided together (Brooks et al.
    2023, arXiv 2211.09800, eq. 3, has two). Rows that cancel are left out.

    Args:
        factors: the conditions, possibly none.
        batch: number of samples N.
        sources: for each sample, the reference it reads; only with ``reference``.
        reference: condition of a reference: that of the reading row, the null of everything, or None for no reference.
            Each pair of a reference and a condition is one row, whichever samples read it.

    Raises:
        ValueError: if a null is needed and missing, or the numbers of labels and samples differ.

    Example:
        >>> guided = Condition(labels=1, null=Condition(labels=2), scale=3.0)
        >>> rows = plan_stack([guided], 1, sources=[0], reference="same")  # [x|c, x|null, y|c, y|null]
        >>> rows.origin, rows.labels, rows.reference
        ([0, 0, 1, 1], [1, 2, 1, 2], [2, 3, 2, 3])
    """
    scales = [factor.scales(batch) for factor in factors]
    keys: list[tuple[int, tuple[int, ...]]] = []  # of each row: its sample, and the sample of each factor, -1 if null
    levels = [[-1] * batch for _ in range(len(factors) + 1)]
    for count in range(len(factors), -1, -1):
        for sample in range(batch):
            if _is_needed(count, [scale[sample] for scale in scales]):
                levels[count][sample] = len(keys)
                keys.append((sample, tuple(sample if k < count else -1 for k in range(len(factors)))))
    _share_rows(levels)
    cost = [sum(key[0] == sample for key in keys) for sample in range(batch)]
    origin = [sample for sample, _ in keys]
    chosen = [which for _, which in keys]
    reads = list(range(len(keys)))
    classes = [_classes(factor, batch) for factor in factors]
    if reference is not None:
        known: dict[tuple[int, tuple[object, ...]], int] = {}
        places = list(range(batch)) if sources is None else sources
        for row, (sample, which) in enumerate(keys):
            own = which if reference == "same" else (-1,) * len(factors)
            key = (places[sample], tuple(_identity(classes[k], factors[k], one) for k, one in enumerate(own)))
            if key not in known:
                known[key] = len(origin)
                origin.append(batch + places[sample])
                chosen.append(own)
                reads.append(known[key])
                cost[sample] += 1
            reads[row] = known[key]
    labels = [_label(classes, which) for which in chosen]
    contexts = [_context(factors, which) for which in chosen]
    return Stack(
        origin=origin,
        labels=[_given(label, "labels") for label in labels] if any(own for own, _ in classes) else None,
        contexts=None if contexts[0] is None else contexts,  # type: ignore[arg-type]
        reference=reads,
        levels=levels,
        scales=scales,
        cost=cost,
    )


def _is_needed(count: int, scales: Sequence[float]) -> bool:
    """Return whether the row in which the first ``count`` factors count contributes to the sum."""
    above = scales[count] if count < len(scales) else 0.0
    below = scales[count - 1] if count else 1.0
    return count == len(scales) or below != above


def _share_rows(levels: list[list[int]]) -> None:
    """Give levels without a row that of the level below, or of the lowest one that has a row."""
    for sample in range(len(levels[0])):
        column = [level[sample] for level in levels]
        lowest = next(row for row in column if row >= 0)
        for count, row in enumerate(column):
            levels[count][sample] = lowest = row if row >= 0 else lowest


def _classes(factor: Condition, batch: int) -> tuple[list[int] | None, int | None]:
    """Return the class of each sample, and the null class."""
    null = factor.null.classes(1) if factor.null is not None else None
    return factor.classes(batch), None if null is None else null[0]


def _identity(classes: tuple[list[int] | None, int | None], factor: Condition, sample: int) -> object:
    """Return what two rows of one reference must share to be the same row."""
    own, null = classes
    label = null if sample < 0 or own is None else own[sample]
    prompt = None if factor.context is None else sample if len(factor.context) > 1 else min(sample, 0)
    return label, prompt


def _label(classes: Sequence[tuple[list[int] | None, int | None]], which: Sequence[int]) -> int | None:
    """Return the class of a row; of the factors at most one has classes."""
    for (own, null), sample in zip(classes, which, strict=True):
        if own is not None:
            return null if sample < 0 else own[sample]
    return None


def _context(factors: Sequence[Condition], which: Sequence[int]) -> Tensor | None:
    """Return the contexts of a row, one after another along the tokens."""
    parts = []
    for factor, sample in zip(factors, which, strict=True):
        if factor.context is not None:
            chosen = factor if sample >= 0 else factor.null
            parts.append(None if chosen is None else chosen.context_of(max(sample, 0)))
    return torch.cat([_given(part, "context") for part in parts]) if parts else None


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise ValueError(f"A row of the call is without a condition: give null.{name}, trained as none.")
    return value
