# SPDX-License-Identifier: Apache-2.0
"""The common base of the schedulers: a list of kept steps, exact tables, and noising that is safe in half precision."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from monai.networks.schedulers import Scheduler
from monai.utils import unsqueeze_right

from medcf.runtime.choices import check_choice
from medcf.schedulers.prediction import Prediction, working_dtype
from medcf.schedulers.spacing import SpacingRule, kept_timesteps
from medcf.schedulers.step import Step

__all__ = ["RespacedScheduler", "StartVariant", "StrengthRule"]

StartVariant = Literal["exact", "published_code"]
StrengthRule = Literal["rounded", "truncated"]


class RespacedScheduler(Scheduler):
    """A MONAI scheduler that knows its kept timesteps; mixed in before one of MONAI's.

    The cumulative alphas are stored as Python floats (float64): coefficients need no transfer from a device, no input
    can change them, and ``scheduler.to(device)`` has nothing to move. MONAI's float32 tables (``betas``, ``alphas``,
    ``alphas_cumprod``) are unchanged. ``timesteps`` stays on the CPU unless ``set_timesteps`` is given a device, so
    loops over it do not wait for the device.

    Args:
        args: arguments of MONAI's scheduler, in its order: ``num_train_timesteps``, ``schedule``, ...
        spacing: rule by which ``set_timesteps`` selects steps, see :func:`medcf.schedulers.spacing.kept_timesteps`.
        rescale_zero_terminal_snr: shift and stretch √A so that it ends at 0 and starts where it did (Lin et al. 2023,
            arXiv 2305.08891, algorithm 1): the last timestep is then pure noise, from which sampling starts. The
            network must be trained with it, on "v_prediction" or "sample".
        strength_rule: how many of n steps a strength is: "rounded", round(strength n), or "truncated", int(strength n),
            which is how diffusers' image-to-image pipelines count.
        options: keyword options of MONAI's scheduler: ``clip_sample``, ``prediction_type`` ("epsilon", "sample" or
            "v_prediction"), ``clip_sample_min``, ``clip_sample_max``; for DDIM ``set_alpha_to_one`` (whether the chain
            ends at the clean image or at the noise level of timestep 0) and ``steps_offset``; and arguments of the
            noise schedule, such as ``beta_start``.

    Raises:
        ValueError: if a name is unknown, or the network predicts ε in a schedule that ends without signal.
    """

    prediction_type: str
    clip_sample: bool
    clip_sample_values: Any
    steps_offset: int = 0
    spacing: SpacingRule = "respaced"
    strength_rule: StrengthRule = "rounded"

    def __init__(
        self,
        *args: Any,
        spacing: SpacingRule = "respaced",
        rescale_zero_terminal_snr: bool = False,
        strength_rule: StrengthRule = "rounded",
        **options: Any,
    ) -> None:
        check_choice("strength_rule", strength_rule, StrengthRule)
        super().__init__(*args, **options)
        self.spacing = spacing
        self.strength_rule = strength_rule
        table = torch.cumprod(1 - self.betas.double(), dim=0)
        if not torch.allclose(table, self.alphas_cumprod.double(), rtol=1e-3, atol=1e-6):
            table = self.alphas_cumprod.double()  # third-party schedule: its alphas are not the product of its betas
        if rescale_zero_terminal_snr:
            table = self._rescaled(table)
        self._alpha_bars: list[float] = table.tolist()
        if str(self.prediction_type) == "epsilon" and min(self._alpha_bars) == 0:
            raise ValueError(
                "This schedule ends without signal (zero terminal SNR), where the noise does not determine the clean "
                'image: train and sample with `prediction_type` "v_prediction" or "sample".'
            )
        self._final_alpha_bar = 1.0 if options.get("set_alpha_to_one", True) else self._alpha_bars[0]
        self._noising_tables: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
        self.set_timesteps(self.num_train_timesteps)

    def _rescaled(self, table: torch.Tensor) -> torch.Tensor:
        """Return A with √A shifted and stretched to end at 0; updates MONAI's tables too."""
        signal = table.sqrt()
        return self._set_tables(((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2)

    def _set_tables(self, table: torch.Tensor) -> torch.Tensor:
        """Make MONAI's tables those of the cumulative alphas (T,), which are returned."""
        alphas = torch.cat([table[:1], table[1:] / table[:-1]])
        self.betas, self.alphas, self.alphas_cumprod = ((1 - alphas).float(), alphas.float(), table.float())
        return table

    def set_noise_levels(self, alpha_bars: torch.Tensor, final_alpha_bar: float = 1.0) -> Self:
        """Replace the noise schedule; keeps every step.

        Args:
            alpha_bars: cumulative alpha of each training timestep, (num_train_timesteps,), falling.
            final_alpha_bar: the noise level at which the chain ends: 1 is the clean image.

        Returns:
            This scheduler.

        Raises:
            ValueError: if there is not one level for each training timestep.
        """
        if alpha_bars.shape != (self.num_train_timesteps,):
            raise ValueError(
                f"alpha_bars has shape {tuple(alpha_bars.shape)}: give one for each of the {self.num_train_timesteps} "
                "training timesteps."
            )
        self._alpha_bars = self._set_tables(alpha_bars.double().cpu()).tolist()
        self._final_alpha_bar = float(final_alpha_bar)
        self._noising_tables = {}
        self.set_timesteps(self.num_train_timesteps)
        return self

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the chain.

        Args:
            num_inference_steps: number of steps to keep, 1 to ``num_train_timesteps``.
            device: device of ``timesteps``; the CPU (default) avoids host synchronization in loops.

        Raises:
            ValueError: if there is no such list of steps.
        """
        count = operator.index(num_inference_steps)
        self.keep(kept_timesteps(self.num_train_timesteps, count, self.spacing, self.steps_offset), device)

    def keep(self, timesteps: Sequence[int], device: str | torch.device | None = None) -> None:
        """Choose the chain by its timesteps.

        Args:
            timesteps: the training timesteps to keep, ascending.
            device: device of ``timesteps``; the CPU (default) avoids host synchronization in loops.

        Raises:
            ValueError: if they do not ascend, or are outside the training schedule.
        """
        kept = [operator.index(t) for t in timesteps]
        if not kept or kept[0] < 0 or kept[-1] >= self.num_train_timesteps or kept != sorted(set(kept)):
            raise ValueError(f"{kept} is not an ascending list of timesteps in [0, {self.num_train_timesteps - 1}].")
        self._kept = kept
        self._position = {t: i for i, t in enumerate(kept)}
        self.num_inference_steps = len(kept)
        self.timesteps = torch.tensor(kept[::-1], dtype=torch.int64, device=device)

    def copy_schedule(self, other: RespacedScheduler) -> Self:
        """Copy another scheduler's noise levels, rules and prediction type; keeps every step.

        Args:
            other: a scheduler with any solver.

        Returns:
            This scheduler.
        """
        self.num_train_timesteps = other.num_train_timesteps
        self.betas, self.alphas, self.alphas_cumprod = other.betas, other.alphas, other.alphas_cumprod
        self.prediction_type, self.steps_offset, self.spacing = other.prediction_type, other.steps_offset, other.spacing
        self.strength_rule = other.strength_rule
        self._alpha_bars, self._final_alpha_bar = list(other._alpha_bars), other._final_alpha_bar
        self._noising_tables = {}
        self.set_timesteps(self.num_train_timesteps)
        return self

    @property
    def kept(self) -> tuple[int, ...]:
        """The kept timesteps in ascending order."""
        return tuple(self._kept)

    def position(self, timestep: int | torch.Tensor) -> int:
        """Return the index of a timestep in the kept list; 0 is closest to the clean image.

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
        """Return the next kept timestep toward the clean image, or -1 at the end of the chain."""
        position = self.position(timestep)
        return self._kept[position - 1] if position > 0 else -1

    def alpha_bar(self, timestep: int | torch.Tensor) -> float:
        """Return A, the cumulative alpha of a training timestep; -1 means the clean image."""
        t = int(timestep)
        if not -1 <= t < self.num_train_timesteps:
            raise ValueError(f"Timestep {t} is outside [-1, {self.num_train_timesteps - 1}].")
        return self._alpha_bars[t] if t >= 0 else self._final_alpha_bar

    def alpha_bar_prev(self, timestep: int | torch.Tensor) -> float:
        """Return P, the cumulative alpha of the previous kept timestep; 1 at the end of the chain."""
        return self.alpha_bar(self.previous(timestep))

    def timesteps_from(self, strength: float) -> list[int]:
        """List the timesteps of a chain that starts from a noised image instead of noise.

        Args:
            strength: fraction of the kept steps to run, in (0, 1]; ``strength_rule`` makes it the number N of denoising
                steps.

        Returns:
            N kept timesteps, noisiest first; the first entry is the noise level of the start.

        Raises:
            ValueError: if the strength amounts to no step, or to more than there are.
        """
        return self._kept[: self._depth(strength)][::-1]

    def _depth(self, strength: float) -> int:
        """Return how many of the kept steps a strength is."""
        share = len(self._kept) * strength
        depth = int(share) if self.strength_rule == "truncated" else round(share)
        if not 1 <= depth <= len(self._kept):
            raise ValueError(
                f"`strength` {strength} amounts to {depth} of {len(self._kept)} kept steps; "
                f"it must give 1 to {len(self._kept)}."
            )
        return depth

    def start_timestep(self, strength: float, variant: StartVariant = "exact") -> int:
        """Return the timestep to which an image is noised before running ``timesteps_from(strength)``.

        Args:
            strength: fraction of the kept steps to run, in (0, 1].
            variant: ``"exact"`` noises to the N-th kept step, which is denoised first; ``"published_code"`` noises one
                kept step further than it denoises (if there is one), like the published code of this family.

        Returns:
            The timestep.

        Raises:
            ValueError: if the strength or the variant is invalid.
        """
        check_choice("variant", variant, StartVariant)
        depth = len(self.timesteps_from(strength))
        return self._kept[min(depth, len(self._kept) - 1) if variant == "published_code" else depth - 1]

    def for_chain(self, timesteps: Sequence[int]) -> Self:
        """Return the scheduler for one chain; solvers that remember earlier steps return a copy with an empty memory.

        Args:
            timesteps: the kept timesteps that the chain visits, in running order.

        Returns:
            This scheduler, if it has no memory.
        """
        return self

    def convert(self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor) -> Prediction:
        """Interpret a network's output at a timestep as noise, clean image and velocity; differentiable.

        Args:
            model_output: (B, C, *spatial), or (B, 2C, *spatial) with a learned variance.
            timestep: the timestep given to the network; any training timestep, kept or not.
            sample: the noisy image given to the network, (B, C, *spatial).

        Returns:
            The prediction in float32 or wider.
        """
        return Prediction.from_output(model_output, sample, self.alpha_bar(timestep), self.prediction_type)

    def posterior(self, prediction: Prediction, timestep: int | torch.Tensor, sample: torch.Tensor) -> Step:
        """Return the distribution of the sample at the next timestep of the chain.

        Args:
            prediction: the network's prediction for ``sample``.
            timestep: the kept timestep given to the network.
            sample: (B, C, *spatial), the sample at the start of the step.

        Returns:
            The step, to which guidance can be applied before drawing.

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
        """Draw the sample at the next timestep of the chain, like MONAI's ``step``.

        Args:
            model_output: output of the network, (B, C, *spatial), or (B, 2C, *spatial) with a learned variance.
            timestep: the kept timestep given to the network.
            sample: (B, C, *spatial).
            generator: source of the noise, if any is drawn.

        Returns:
            The next sample and the predicted clean image, both in the dtype of ``sample``.
        """
        step = self.posterior(self.convert(model_output, timestep, sample), timestep, sample)
        return step.draw(generator), step.pred_original.to(sample.dtype)

    def _clipped(self, original: torch.Tensor) -> torch.Tensor:
        """Return the predicted clean image, clipped as configured."""
        return original.clamp(*self.clip_sample_values) if self.clip_sample else original

    def _signal_and_spread(self, like: torch.Tensor, timesteps: int | torch.Tensor) -> tuple:
        """Return √A and √(1 - A) for ``like``: floats for an int timestep, otherwise tensors that broadcast."""
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
        """Add noise to clean images: √A x0 + √(1 - A) ε, computed in float32 or wider for any input.

        Args:
            original_samples: (B, C, *spatial).
            noise: the same shape.
            timesteps: (B,) training timesteps, or one for all.

        Returns:
            The noisy images in the dtype of ``original_samples``.
        """
        signal, spread = self._signal_and_spread(original_samples, timesteps)
        dtype = working_dtype(original_samples)
        return (signal * original_samples.to(dtype) + spread * noise.to(dtype)).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """Compute the target of v-prediction, √A ε - √(1 - A) x0; arguments and dtypes as in `add_noise`."""
        signal, spread = self._signal_and_spread(sample, timesteps)
        dtype = working_dtype(sample)
        return (signal * noise.to(dtype) - spread * sample.to(dtype)).to(sample.dtype)
