# SPDX-License-Identifier: Apache-2.0
"""One network call per step for all that attention injection needs: targets, null condition, noised references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from medcf.networks.attention_injection import AttentionInjection
from medcf.networks.class_token import memory_layout
from medcf.networks.denoiser import Network, away_from_null
from medcf.sampling.noise import noised
from medcf.schedulers import Prediction, RespacedScheduler

__all__ = ["InjectedDenoiser", "ReferenceCondition", "ReferenceNoise", "Rows", "plan_rows"]

ReferenceCondition = Literal["same", "null"]
ReferenceNoise = Literal["fresh", "shared", "start"]


@dataclass(frozen=True)
class Rows:
    """The rows of a stacked network call for N edits of M inputs.

    Attributes:
        origin: for each row, the image it shows: 0 to N - 1 are the edits' noisy images, N onward the M noised inputs.
        labels: class that conditions each row.
        reference: row whose tokens each row sees in addition to its own; a row that names itself sees only its own.
        null: for each edit, the row of its null condition; its own row if it is not guided.
        cost: for each edit, its number of rows in the stack; a row shared by several edits counts for the first.
    """

    origin: list[int]
    labels: list[int]
    reference: list[int]
    null: list[int]
    cost: list[int]

    def __len__(self) -> int:
        return len(self.labels)


def plan_rows(
    sources: Sequence[int],
    targets: Sequence[int],
    guided: Sequence[bool],
    *,
    null_class_labels: int | None = None,
    reference: ReferenceCondition | None = None,
) -> Rows:
    """Lay out a stacked network call: conditional rows, then null rows, then the references they need.

    Each pair of an input and a condition is one row, whichever edits read it: with ``reference="null"`` all targets and
    guidance scales of an input share one.

    Args:
        sources: for each edit, the index of its input.
        targets: for each edit, the target class.
        guided: for each edit, whether it is compared with the null class.
        null_class_labels: index of the null class.
        reference: condition of the reference: that of the reading row, the null class, or None for no reference.

    Example:
        >>> rows = plan_rows([0], [1], [True], null_class_labels=2, reference="same")  # [x|c, x|null, y|c, y|null]
        >>> rows.origin, rows.labels, rows.reference
        ([0, 0, 1, 1], [1, 2, 1, 2], [2, 3, 2, 3])
        >>> plan_rows([0, 0], [0, 1], [True, True], null_class_labels=2, reference="null").reference
        [4, 4, 4, 4, 4]
    """
    count = len(targets)
    if null_class_labels is None and (any(guided) or reference == "null"):
        raise ValueError(
            "null_class_labels=None, but the null class is needed: give the index trained as the null class."
        )
    null_label = -1 if null_class_labels is None else null_class_labels
    origin, labels, null = list(range(count)), list(targets), list(range(count))
    for edit in range(count):
        if guided[edit]:
            null[edit] = len(labels)
            origin.append(edit)
            labels.append(null_label)
    cost = [1 + bool(one) for one in guided]
    own = len(labels)
    reads = list(range(own))
    if reference is not None:
        place = {source: index for index, source in enumerate(dict.fromkeys(sources))}
        rows: dict[tuple[int, int], int] = {}
        for row in range(own):
            edit = origin[row]
            key = (sources[edit], labels[row] if reference == "same" else null_label)
            if key not in rows:
                rows[key] = len(labels)
                origin.append(count + place[key[0]])
                labels.append(key[1])
                reads.append(rows[key])
                cost[edit] += 1
            reads[row] = rows[key]
    return Rows(origin, labels, reads, null, cost)


class InjectedDenoiser:
    """Predicts for N edits with classifier-free guidance and attention to the M noised inputs, in one network call.

    Called as ``denoiser(sample, t)`` like ``medcf.networks.Denoiser``, and equal to it without references. The call
    never waits for the device.

    Args:
        network: denoising network with class labels.
        scheduler: provides ``convert(model_output, t, sample)`` and ``alpha_bar(t)``.
        rows: layout of the stack.
        guidance_scales: one per edit; 1 is off.
        references: the inputs y_0 (M, C, *spatial), in the order of their first edits.
        generators: one per input, for drawing new noise at each step. Not used if ``noise`` is given.
        noise: noise (M, C, *spatial) for the inputs, used at all steps.
        injection: an active ``AttentionInjection`` of the network; None without references.
    """

    def __init__(
        self,
        network: Network,
        scheduler: RespacedScheduler,
        rows: Rows,
        guidance_scales: Sequence[float],
        references: torch.Tensor,
        *,
        generators: Sequence[torch.Generator] = (),
        noise: torch.Tensor | None = None,
        injection: AttentionInjection | None = None,
    ) -> None:
        device = references.device
        self.network = network
        self.scheduler = scheduler
        self.references = references
        self.generators = generators
        self.noise = noise
        self.injected = injection is not None
        self._origin, self._labels, self._null = (
            torch.tensor(index, device=device) for index in (rows.origin, rows.labels, rows.null)
        )
        weights = torch.tensor([float(scale) for scale in guidance_scales], dtype=torch.float64).float()
        self._weights = weights.reshape(-1, *[1] * (references.ndim - 1)).to(device)
        if injection is not None:
            injection.reference = rows.reference
        #: Network evaluations so far, for each edit.
        self.num_function_evaluations = torch.zeros(len(rows.null), dtype=torch.long)
        self._cost = torch.tensor(rows.cost)

    def __call__(self, sample: torch.Tensor, t: int) -> Prediction:
        """Predict noise, clean image and velocity of noisy images (N, C, *spatial) at step ``t``."""
        self.num_function_evaluations += self._cost
        pool = torch.cat([sample, self._noised(t).to(sample.dtype)]) if self.injected else sample
        stack = pool[self._origin].contiguous(memory_format=memory_layout(sample))
        timesteps = torch.full((len(stack),), t, device=stack.device, dtype=torch.long)
        output = self.network(stack, timesteps=timesteps, class_labels=self._labels)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        mixed = away_from_null(output[: len(sample)], output[self._null], self._weights, sample.shape[1])
        return self.scheduler.convert(mixed, t, sample)

    def _noised(self, t: int) -> torch.Tensor:
        """Return y_t = sqrt(A) y_0 + sqrt(1 - A) noise."""
        if self.noise is None:
            return noised(self.scheduler, self.references, t, self.generators)
        alpha_bar = self.scheduler.alpha_bar(t)
        return alpha_bar**0.5 * self.references + (1 - alpha_bar) ** 0.5 * self.noise
