# SPDX-License-Identifier: Apache-2.0
"""What the schedulers share: their own list of kept steps, exact tables, and half-precision-safe noising."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from monai.networks.schedulers import Scheduler
from monai.utils import unsqueeze_right

from medcf.runtime.choices import check_choice
from medcf.schedulers.prediction import Prediction, working_dtype
from medcf.schedulers.spacing import Spacing, kept_timesteps
from medcf.schedulers.step import Step

__all__ = ["RespacedScheduler", "StartVariant"]

StartVariant = Literal["exact", "published_code"]


class RespacedScheduler(Scheduler):
    """A MONAI scheduler that knows which timesteps it kept, mixed in before one of MONAI's.

    The cumulated alphas are kept as Python floats (float64): coefficients cost no transfer from a device, no input can
    change them, and ``scheduler.to(device)`` has nothing to move. MONAI's float32 tables (``betas``, ``alphas``,
    ``alphas_cumprod``) stay as they were made. ``timesteps`` stays on the CPU unless ``set_timesteps`` is told
    otherwise, so that loops over it do not wait for the device.

    Args:
        args: as MONAI's scheduler takes them, in its order: ``num_train_timesteps``, ``schedule``, ...
        spacing: rule by which ``set_timesteps`` keeps steps, see :func:`medcf.schedulers.spacing.kept_timesteps`.
        options: of MONAI's scheduler by name: ``clip_sample``, ``prediction_type`` ("epsilon", "sample" or
            "v_prediction"), ``clip_sample_min``, ``clip_sample_max``, of DDIM ``set_alpha_to_one`` (whether the chain
            ends at the clean image or at the noise level of timestep 0) and ``steps_offset``; and the arguments of the
            noise schedule, such as ``beta_start``.

    Raises:
        ValueError: if a name is unknown.
    """

    prediction_type: str
    clip_sample: bool
    clip_sample_values: Any
    steps_offset: int = 0
    spacing: Spacing = "respaced"

    def __init__(self, *args: Any, spacing: Spacing = "respaced", **options: Any) -> None:
        super().__init__(*args, **options)
        self.spacing = spacing
        table = torch.cumprod(1 - self.betas.double(), dim=0)
        if not torch.allclose(table, self.alphas_cumprod.double(), rtol=1e-3, atol=1e-6):
            table = self.alphas_cumprod.double()  # a third-party schedule whose alphas are not the product of its betas
        self._alpha_bars: list[float] = table.tolist()
        self._final_alpha_bar = 1.0 if options.get("set_alpha_to_one", True) else self._alpha_bars[0]
        self._noising_tables: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
        self.set_timesteps(self.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the chain.

        Args:
            num_inference_steps: number of steps to keep, 1 to ``num_train_timesteps``.
            device: where to put ``timesteps``; the CPU (the default) avoids host synchronization in loops.

        Raises:
            ValueError: if no such list of steps exists.
        """
        count = operator.index(num_inference_steps)
        self.keep(kept_timesteps(self.num_train_timesteps, count, self.spacing, self.steps_offset), device)

    def keep(self, timesteps: Sequence[int], device: str | torch.device | None = None) -> None:
        """Choose the chain by its timesteps.

        Args:
            timesteps: the training timesteps to keep, ascending.
            device: where to put ``timesteps``; the CPU (the default) avoids host synchronization in loops.

        Raises:
            ValueError: if they do not ascend, or lie outside the training schedule.
        """
        kept = [operator.index(t) for t in timesteps]
        if not kept or kept[0] < 0 or kept[-1] >= self.num_train_timesteps or kept != sorted(set(kept)):
            raise ValueError(f"{kept} is no ascending list of timesteps in [0, {self.num_train_timesteps - 1}].")
        self._kept = kept
        self._position = {t: i for i, t in enumerate(kept)}
        self.num_inference_steps = len(kept)
        self.timesteps = torch.tensor(kept[::-1], dtype=torch.int64, device=device)

    def copy_schedule(self, other: RespacedScheduler) -> Self:
        """Take over another scheduler's noise levels, spacing rule and what its network predicts; keeps every step.

        Args:
            other: a scheduler of any solver.

        Returns:
            This scheduler.
        """
        self.num_train_timesteps = other.num_train_timesteps
        self.betas, self.alphas, self.alphas_cumprod = other.betas, other.alphas, other.alphas_cumprod
        self.prediction_type, self.steps_offset, self.spacing = other.prediction_type, other.steps_offset, other.spacing
        self._alpha_bars, self._final_alpha_bar = list(other._alpha_bars), other._final_alpha_bar
        self._noising_tables = {}
        self.set_timesteps(self.num_train_timesteps)
        return self

    @property
    def kept(self) -> tuple[int, ...]:
        """The kept timesteps in ascending order."""
        return tuple(self._kept)

    def position(self, timestep: int | torch.Tensor) -> int:
        """Return the index of a timestep in the kept list, 0 being the one nearest to the clean image.

        Raises:
            ValueError: if the chain does not keep this timestep.
        """
        t = int(timestep)
        if t not in self._position:
            raise ValueError(
                f"Timestep {t} is not among the {len(self._kept)} kept ones, {self._kept[0]} to {self._kept[-1]}; "
                "take timesteps from `scheduler.timesteps` after `set_timesteps`."
            )
        return self._position[t]

    def previous(self, timestep: int | torch.Tensor) -> int:
        """Return the next kept timestep towards the clean image, or -1 at the end of the chain."""
        position = self.position(timestep)
        return self._kept[position - 1] if position > 0 else -1

    def alpha_bar(self, timestep: int | torch.Tensor) -> float:
        """Return A, the cumulated alpha of a training timestep; -1 stands for the clean image."""
        t = int(timestep)
        if not -1 <= t < self.num_train_timesteps:
            raise ValueError(f"Timestep {t} is outside [-1, {self.num_train_timesteps - 1}].")
        return self._alpha_bars[t] if t >= 0 else self._final_alpha_bar

    def alpha_bar_prev(self, timestep: int | torch.Tensor) -> float:
        """Return P, the cumulated alpha of the previous kept timestep; 1 at the end of the chain."""
        return self.alpha_bar(self.previous(timestep))

    def timesteps_from(self, strength: float) -> list[int]:
        """List the timesteps of a chain that starts from a noised image instead of from noise.

        Args:
            strength: share of the kept steps to run, in (0, 1]; N = round(strength * n) denoisings.

        Returns:
            N kept timesteps, the noisiest first; its first entry is the level to noise to.

        Raises:
            ValueError: if the strength stands for no step, or for more than there are.
        """
        depth = round(strength * len(self._kept))
        if not 1 <= depth <= len(self._kept):
            raise ValueError(
                f"`strength` {strength} stands for {depth} of {len(self._kept)} kept steps; "
                f"it must give 1 to {len(self._kept)}."
            )
        return self._kept[:depth][::-1]

    def start_timestep(self, strength: float, variant: StartVariant = "exact") -> int:
        """Return the timestep an image is noised to before ``timesteps_from(strength)`` is run.

        Args:
            strength: share of the kept steps to run, in (0, 1].
            variant: ``"exact"`` noises to the N-th kept step, the first to be denoised; ``"published_code"`` one kept
                step further than it denoises (where there is one), as the published code of this family does.

        Returns:
            The timestep.

        Raises:
            ValueError: if the strength or the variant is not valid.
        """
        check_choice("variant", variant, StartVariant)
        depth = len(self.timesteps_from(strength))
        return self._kept[min(depth, len(self._kept) - 1) if variant == "published_code" else depth - 1]

    def convert(self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor) -> Prediction:
        """Read a network's output at a timestep as noise, clean image and velocity; differentiable.

        Args:
            model_output: (B, C, *spatial), or (B, 2C, *spatial) with a learned variance.
            timestep: the timestep the network was told; any of training, kept or not.
            sample: the noised image the network saw, (B, C, *spatial).

        Returns:
            The prediction in float32 or wider.
        """
        return Prediction.from_output(model_output, sample, self.alpha_bar(timestep), self.prediction_type)

    def posterior(self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor) -> Step:
        """Return the distribution of the sample at the next timestep of the chain.

        Args:
            prediction: what the network says about ``sample``.
            timestep: the kept timestep that the network was told.
            sample: (B, C, *spatial), the sample that the step starts from.

        Returns:
            The step, open to guidance before it is drawn.

        Raises:
            ValueError: if the timestep is not kept.
        """
        raise NotImplementedError

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the sample at the next timestep of the chain, as MONAI's ``step``.

        Args:
            model_output: output of the network, (B, C, *spatial), or (B, 2C, *spatial) with a learned variance.
            timestep: the kept timestep that the network was told.
            sample: (B, C, *spatial).
            generator: source of the noise, where any is drawn.

        Returns:
            The next sample and the predicted clean image, both in the dtype of ``sample``.
        """
        step = self.posterior(self.convert(model_output, timestep, sample), timestep, sample)
        return step.draw(generator), step.pred_original.to(sample.dtype)

    def _clipped(self, original: torch.Tensor) -> torch.Tensor:
        """Return a predicted clean image as the scheduler clips it."""
        return original.clamp(*self.clip_sample_values) if self.clip_sample else original

    def _signal_and_spread(self, like: torch.Tensor, timesteps: int | torch.Tensor) -> tuple:
        """Return √A and √(1 - A) for ``like``: floats for an int timestep, else tensors that broadcast."""
        if not isinstance(timesteps, torch.Tensor):
            alpha_bar = self.alpha_bar(timesteps)
            return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        key = (like.device, working_dtype(like))
        if key not in self._noising_tables:
            table = torch.tensor(self._alpha_bars, dtype=torch.float64)
            self._noising_tables[key] = (table.sqrt().to(*key), (1 - table).sqrt().to(*key))
        index = timesteps.to(like.device)
        signal, spread = (unsqueeze_right(table[index], like.ndim) for table in self._noising_tables[key])
        return signal, spread

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """Noise clean images: √A x0 + √(1 - A) ε, computed in float32 or wider whatever the input.

        Args:
            original_samples: (B, C, *spatial).
            noise: the same shape.
            timesteps: (B,) training timesteps, or one for all.

        Returns:
            The noised images in the dtype of ``original_samples``.
        """
        signal, spread = self._signal_and_spread(original_samples, timesteps)
        dtype = working_dtype(original_samples)
        return (signal * original_samples.to(dtype) + spread * noise.to(dtype)).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """Compute the target of v-prediction, √A ε - √(1 - A) x0; arguments and dtypes as for `add_noise`."""
        signal, spread = self._signal_and_spread(sample, timesteps)
        dtype = working_dtype(sample)
        return (signal * noise.to(dtype) - spread * sample.to(dtype)).to(sample.dtype)
