# SPDX-License-Identifier: Apache-2.0
"""ILVR: the target class with the input's low frequencies (Choi et al. 2021, arXiv 2108.02938)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812

from medcf.guidance.regions import KnownNoise, Level
from medcf.inferers.conditional import edit
from medcf.inferers.method import Method
from medcf.inferers.options import EditOptions
from medcf.registry import METHODS
from medcf.sampling import Chain, Hook, noised
from medcf.schedulers import RespacedScheduler, Step

__all__ = ["ILVRInferer", "ILVROptions", "LowPass", "LowPassKind"]

LowPassKind = Literal["projection", "interpolation"]


@dataclass(frozen=True, kw_only=True)
class ILVROptions(EditOptions):
    """Options of ILVR.

    Attributes:
        downsample_factor: n, the factor by which the low-pass filter coarsens each axis.
        stop_timestep: T, in training steps: steps from lower timesteps run freely. 0 replaces at every step.
        lowpass: phi_n averages blocks of n and interpolates linearly: "interpolation" does only that; "projection"
            sharpens the coarse image in between, so that phi_n(phi_n(x)) = phi_n(x), as the method assumes.
        reference_noise: noise of y_t, "fresh" at each step or one map "shared" by all.
        level: noise level of y after a step from t: that of the step's result ("exact"), or t although the sample has
            moved on ("published_code").
    """

    downsample_factor: int = 2
    stop_timestep: int = 250
    lowpass: LowPassKind = "projection"
    reference_noise: KnownNoise = "fresh"
    level: Level = "exact"

    def __post_init__(self) -> None:
        """Refuse a filter that filters nothing."""
        super().__post_init__()
        if self.downsample_factor < 2:
            raise ValueError(f"downsample_factor={self.downsample_factor}: a low-pass filter needs 2 or more.")


class ILVRInferer(Method):
    """Generate from pure noise; while t >= T, x <- x - phi_n(x) + phi_n(y_t) after each step.

    A baseline in ControlCG, with (n, T) = (2, 250), (2, 500) and (4, 250) of 1000 steps. The low frequencies of the
    result are the input's, except for what the steps below T change: large structures cannot move.
    """

    title = "ILVR"
    Options = ILVROptions
    needs_gradients = False
    run_pass = edit

    def prepared(self, scheduler: RespacedScheduler) -> RespacedScheduler:
        """Return the scheduler, and refuse a T that is not one of its steps."""
        last, stop = scheduler.num_train_timesteps, self.options.stop_timestep
        if not 0 <= stop <= last:
            raise ValueError(f"stop_timestep={stop} is outside [0, {last}], the training steps.")
        return super().prepared(scheduler)

    def hooks(self, chain: Chain) -> Sequence[Hook]:
        """Return the replacement of the low frequencies."""
        return [_Replace(chain, self.options)]


class _Replace(Hook):
    """Replace the sample's low frequencies by those of the noised input."""

    def __init__(self, chain: Chain, options: ILVROptions) -> None:
        self.chain = chain
        self.options = options
        size = chain.original.shape[2:]
        self.lowpass = LowPass(size, options.downsample_factor, options.lowpass, chain.original.device)
        self._generators = None if options.reference_noise == "shared" else chain.generators("reference")

    def after_step(self, sample: torch.Tensor, step: Step) -> torch.Tensor:
        """Return the drawn images with the low frequencies of y."""
        if step.timestep < self.options.stop_timestep:
            return sample
        scheduler, original = self.chain.scheduler, self.chain.original.to(sample.dtype)
        t = step.timestep if self.options.level == "published_code" else scheduler.previous(step.timestep)
        known = noised(scheduler, original, t, self._generators or self.chain.generators("reference"))
        return sample + self.lowpass(known - sample)


class LowPass:
    """phi_n, a linear low-pass filter: means of blocks of n, interpolated back to the grid; separable over axes.

    Linear interpolation alone does not reproduce the means it came from, so phi_n is not a projection. With the kind
    "projection" it solves for the coarse image whose interpolation has those means: phi_n = U (D U)^-1 D, where D takes
    means and U interpolates.

    Args:
        size: size of the grid.
        factor: n; a side not divisible by n has ceil(side / n) coarse pixels.
        kind: "projection" or "interpolation".
        device: device for the computation.
    """

    def __init__(
        self,
        size: Sequence[int],
        factor: int,
        kind: LowPassKind = "projection",
        device: torch.device | str = "cpu",
    ) -> None:
        self.matrices = [_matrix(side, factor, kind).to(device) for side in size]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Filter images (B, C, *spatial), in at least 32 bits even under autocast."""
        with torch.autocast(image.device.type, enabled=False):
            for axis, matrix in enumerate(self.matrices, start=2):
                image = (image.movedim(axis, -1) @ matrix.to(image.dtype).T).movedim(-1, axis)
        return image


def _matrix(side: int, factor: int, kind: LowPassKind) -> torch.Tensor:
    """Return the filter of one axis (side, side)."""
    down = F.interpolate(torch.eye(side, dtype=torch.float64)[None], size=-(-side // factor), mode="area")[0].T
    up = F.interpolate(torch.eye(len(down), dtype=torch.float64)[None], size=side, mode="linear")[0].T
    coarse = torch.linalg.solve(down @ up, down) if kind == "projection" else down
    return (up @ coarse).float()


METHODS.add("ilvr", "Generation with the low frequencies of the input (ILVR)", ILVRInferer)
