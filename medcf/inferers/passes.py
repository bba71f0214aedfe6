# SPDX-License-Identifier: Apache-2.0
"""One pass of a method over some images of a batch, and the chains that it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from medcf.inferers.counterfactual import BatchState
from medcf.networks.condition import Condition
from medcf.networks.denoiser import Denoiser, Network, References
from medcf.runtime.progress import Progress
from medcf.sampling import Chain, make_generators

if TYPE_CHECKING:
    from medcf.inferers.method import Method

__all__ = ["Pass"]


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of a method over some images of a batch.

    Attributes:
        method: the method.
        state: the batch.
        index: the images that take part (N,).
        number: number of the pass, from 0.
        network: the denoising network.
        bar: counts the steps.
    """

    method: Method
    state: BatchState
    index: Tensor
    number: int
    network: Network
    bar: Progress

    def chain(self, index: Tensor, condition: Sequence[Condition], start: Tensor | None = None) -> Chain:
        """Return the pass over the images ``index`` (N,) of the batch.

        Args:
            index: the images, in any order, also repeated.
            condition: what they are denoised toward.
            start: images from which it starts (N, C, *spatial); None takes the current ones.
        """
        method, state = self.method, self.state
        timesteps, level = method.schedule(self.number)
        ids, seeds = ([values[i] for i in index.tolist()] for values in (state.ids, state.seeds))
        generators = partial(make_generators, seeds, ids, index.device, ("encode",))
        original = method.space.encode(state.original[index], generators())
        if self.number == 0:
            clean = original  # every image starts from its input
        else:
            clean = method.space.encode(state.current[index] if start is None else start, generators())
        chain = Chain(
            start=clean,
            original=original,
            ids=ids,
            seeds=seeds,
            number=self.number,
            timesteps=timesteps,
            level=level,
            denoiser=None,
            scheduler=method.scheduler,
            mask=None if state.region is None else method.space.mask(state.region[index], original.shape[2:]),
            progress=self.bar,
        )
        denoiser = self.denoiser(index, condition, method.references(self, index, chain))
        return replace(chain, denoiser=denoiser)

    def denoiser(self, index: Tensor, condition: Sequence[Condition], references: References | None = None) -> Denoiser:
        """Return the network with a condition of the images ``index`` (N,), and what a ControlNet follows in them."""
        control = self.method.control
        inputs = None if control is None else {"control": control(self.state.original[index])}
        return Denoiser(self.network, self.method.scheduler, condition, references, inputs)
