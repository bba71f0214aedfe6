# SPDX-License-Identifier: Apache-2.0
"""Methods that noise an image to a limited level and denoise it again: their common chain."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from medcf.inferers.base import CounterfactualInferer
from medcf.inferers.checks import check_choice, check_numbers, check_scheduler
from medcf.inferers.counterfactual import BatchState
from medcf.runtime.progress import Progress
from medcf.sampling import Chain, Hook, denoise, noised
from medcf.sampling.loop import Predict
from medcf.schedulers import RespacedScheduler
from medcf.schedulers.base import StartVariant

__all__ = ["ChainInferer"]


class ChainInferer(CounterfactualInferer):
    """Noise to the N-th kept step, then denoise N times with the method's hooks.

    Args:
        scheduler: a scheduler from ``medcf.schedulers``; copied, not modified.
        args: classifier and target, see ``CounterfactualInferer``.
        num_inference_steps: number n of kept steps.
        strength: fraction of the kept steps to noise and denoise; or one per pass, the last for all further passes.
        clip_denoised: clip predicted clean images, and each pass's output, to [-1, 1]; takes precedence over the
            scheduler's setting.
        start_variant: "exact" noises to the first denoised step; "published_code" one kept step further.
        options: see ``CounterfactualInferer``.

    Raises:
        ValueError: if an option is unknown or out of range.
    """

    def __init__(
        self,
        scheduler: RespacedScheduler,
        *args: Any,
        num_inference_steps: int = 400,
        strength: float | Sequence[float] = 0.3,
        clip_denoised: bool = True,
        start_variant: StartVariant = "exact",
        **options: Any,
    ) -> None:
        check_scheduler(scheduler)
        super().__init__(*args, **options)
        check_choice("start_variant", start_variant, StartVariant)
        check_numbers(num_inference_steps=num_inference_steps, whole=True)
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.clip_sample = clip_denoised
        self.scheduler.set_timesteps(num_inference_steps)
        self.strengths = (strength,) if isinstance(strength, int | float | str) else tuple(strength)
        if not self.strengths:
            raise ValueError("strength=(): give one strength, or one per pass.")
        self.clip_denoised = clip_denoised
        self.start_variant = start_variant
        for share in self.strengths:  # refuse an invalid one here, not after a pass
            check_numbers(strength=share)
            self.scheduler.timesteps_from(share)

    @property
    def timesteps(self) -> list[int]:
        """The kept steps of the first pass, noisiest first."""
        return self._schedule(0)[0]

    @property
    def start_timestep(self) -> int:
        """The timestep to which the first pass noises."""
        return self._schedule(0)[1]

    def _schedule(self, number: int) -> tuple[list[int], int]:
        """Return the steps of a pass and the timestep to which it noises."""
        strength = self.strengths[min(number, len(self.strengths) - 1)]
        start = self.scheduler.start_timestep(strength, self.start_variant)
        return self.scheduler.timesteps_from(strength), start

    def _num_steps(self) -> int:
        return sum(len(self._schedule(number)[0]) for number in range(self.num_iterations))

    def _chain(self, state: BatchState, index: torch.Tensor, number: int, denoiser: Predict) -> Chain:
        """Return pass ``number`` over the images ``index`` (N,) of the state."""
        ids, timesteps = [state.ids[i] for i in index.tolist()], self._schedule(number)[0]
        start, original = state.current[index], state.original[index]
        return Chain(start, original, ids, number, timesteps, denoiser, self.scheduler, self.seed)

    def _run_chain(self, chain: Chain, hooks: Sequence[Hook], bar: Progress) -> torch.Tensor:
        """Return the result of the chain for the start images (N, C, *spatial)."""
        image = self._denoised(chain, hooks, bar)
        return image.clamp(-1, 1) if self.clip_denoised else image

    def _denoised(self, chain: Chain, hooks: Sequence[Hook], bar: Progress) -> torch.Tensor:
        """Noise the start images and denoise them."""
        generators = chain.generators("pass")
        noisy = self._noisy(chain, generators)
        options: dict[str, Any] = {"generators": generators, "hooks": hooks, "progress": bar}
        return denoise(chain.denoiser, self.scheduler, noisy, chain.timesteps, **options)

    def _noisy(self, chain: Chain, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Return the images from which a chain starts."""
        return noised(self.scheduler, chain.start, self._schedule(chain.number)[1], generators)
