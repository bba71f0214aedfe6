# SPDX-License-Identifier: Apache-2.0
"""Data order and random numbers of a training; both depend only on the seed and the iteration."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence, Sized
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch.utils.data import DistributedSampler

__all__ = ["EpochSampler", "PhasedSampler", "ReproducibleRandomness"]


class EpochSampler(DistributedSampler):
    """Cut the endless shuffled stream of a dataset into epochs with a fixed number of batches.

    Epoch and dataset need not have the same length: pass n over the dataset is shuffled by (seed, n), passes follow one
    another, and epoch e is the e-th piece of that stream. Every sample is seen equally often, and the order depends
    only on (seed, e), so a resumed training continues with the data it would have seen. Under torchrun the processes
    divide each batch's worth of the stream among them. MONAI's engines call ``set_epoch``.

    Args:
        dataset: the dataset; only its length is used.
        batch_size: samples per batch of one process.
        epoch_length: batches per epoch.
        seed: seed for the order.
        num_replicas: number of processes; by default torchrun's.
        rank: this process's number; by default torchrun's.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        epoch_length: int,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The training dataset is empty.")
        if epoch_length < 1:
            raise ValueError(f"An epoch of {epoch_length} batches trains nothing: give iterations of at least 1.")
        self.num_replicas = num_replicas or idist.get_world_size()
        self.rank = idist.get_rank() if rank is None else rank
        self.dataset = dataset  # type: ignore[assignment]
        self.num_samples = batch_size * epoch_length
        self.total_size = self.num_samples * self.num_replicas
        self.seed = seed
        self.epoch = 1
        self.shuffle = True
        self.drop_last = False

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        begin = (max(self.epoch, 1) - 1) * self.total_size
        order: torch.Tensor | None = None
        current = -1
        for position in range(begin + self.rank, begin + self.total_size, self.num_replicas):
            number, index = divmod(position, size)
            if order is None or number != current:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
                order, current = torch.randperm(size, generator=generator), number
            yield int(order[index])

    def __len__(self) -> int:
        return self.num_samples


class PhasedSampler(EpochSampler):
    """One kind of images after another: each phase shuffles its images, again and again, for its iterations.

    Args:
        dataset: the dataset.
        kinds: the kind of each of its samples, such as its class.
        phases: (kind or tuple of kinds, iterations) in their order; the last one goes on for ever.
        batch_size: see `EpochSampler`.
        epoch_length: see `EpochSampler`.
        seed: see `EpochSampler`.
        options: further options of `EpochSampler`.

    Raises:
        ValueError: if a phase has no images or no iterations.
    """

    def __init__(
        self,
        dataset: Sized,
        kinds: Sequence[Hashable],
        phases: Sequence[tuple[Hashable, int]],
        batch_size: int,
        epoch_length: int,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size, epoch_length, seed, **options)
        wanted = [kind if isinstance(kind, tuple) else (kind,) for kind, _ in phases]
        self.members = [[index for index, kind in enumerate(kinds) if kind in chosen] for chosen in wanted]
        counts = torch.tensor([iterations for _, iterations in phases])
        if not phases or not all(self.members) or int(counts.min()) < 1:
            raise ValueError(f"phases={list(phases)}: each needs a kind of which there are images, and iterations.")
        self.ends = (counts.cumsum(0) * batch_size * self.num_replicas).tolist()

    def __iter__(self) -> Iterator[int]:
        begin, known = (max(self.epoch, 1) - 1) * self.total_size, None
        order: list[int] = []
        for position in range(begin + self.rank, begin + self.total_size, self.num_replicas):
            phase = next((i for i, end in enumerate(self.ends) if position < end), len(self.ends) - 1)
            members = self.members[phase]
            number, index = divmod(position - ([0, *self.ends][phase]), len(members))
            if (phase, number) != known:
                mixed = (self.seed * 1_000_003 + number) * 1009 + phase
                order = torch.randperm(len(members), generator=torch.Generator().manual_seed(mixed)).tolist()
                known = (phase, number)
            yield members[order[index]]


class ReproducibleRandomness:
    """Make every random number of a training a function of (seed, process, iteration).

    PyTorch's global generators are seeded at the start of every epoch and iteration, and the dataset's random
    transforms at the start of every epoch. So no generator state needs to be in a checkpoint, and noise, timesteps and
    augmentation do not depend on whether the run was interrupted.

    Args:
        seed: the seed.
        dataset: dataset with a random ``transform`` (MONAI's `Randomizable`); None if nothing in it is random.
    """

    def __init__(self, seed: int = 0, dataset: Any = None) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self.start_iteration)

    def _mix(self, number: int) -> int:
        return (self.seed * 1_000_003 + idist.get_rank()) * 100_000_007 + number

    def start_epoch(self, engine: Engine) -> None:
        """Seed the generators used by the loader."""
        torch.manual_seed(self._mix(-engine.state.epoch))
        transform = getattr(self.dataset, "transform", None)
        if transform is not None and hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=self._mix(engine.state.epoch) % 2**32)

    def start_iteration(self, engine: Engine) -> None:
        """Seed the generators used by the network and ``prepare_batch``."""
        torch.manual_seed(self._mix(engine.state.iteration))
