# SPDX-License-Identifier: Apache-2.0
"""The denoising loop: every method is a start, a model call and hooks around ``denoise``.

Nothing in the loop waits for the device: timesteps are Python integers, coefficients are floats, and no tensor is read
back. The randomness of each sample is its own generator's, so that a result does not depend on batch size or order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

from medcf.schedulers.step import Step

__all__ = ["Hook", "denoise", "make_generators", "noised"]


class Hook(Protocol):
    """What a method adds to a step of the loop; subclass it and override what is needed."""

    def before_model(self, sample: torch.Tensor, t: int) -> torch.Tensor:
        """Return the noisy images the model is to see; a leaf that requires grad makes the loop record the forward."""
        return sample

    def on_step(self, step: Any) -> Any:
        """Return the ``Step`` to draw from: a moved mean (guidance), a mask, a low-pass."""
        return step

    def after_step(self, sample: torch.Tensor, step: Any) -> torch.Tensor:
        """Return the drawn images, the next step's noisy images."""
        return sample


def denoise(
    denoiser: Callable[[torch.Tensor, int], Any],
    scheduler: Any,
    sample: torch.Tensor,
    timesteps: Sequence[int],
    *,
    generators: Sequence[torch.Generator] | None = None,
    hooks: Sequence[Hook] = (),
    progress: Any = None,
) -> torch.Tensor:
    """Run the chain over the given timesteps.

    Args:
        denoiser: (sample, t) to the scheduler's ``Prediction``; ``medcf.networks.Denoiser``.
        scheduler: gives ``posterior(prediction, t, sample)``, a ``Step`` with ``draw(generators)``.
        sample: noisy images (B, C, *spatial) at ``timesteps[0]``.
        timesteps: kept steps as Python integers, in the order in which they run: ``scheduler.timesteps_from``.
        generators: one per sample; None draws from torch's global state.
        hooks: called in order before the model, on the step, and after the draw.
        progress: anything with ``update(n)``, for example a tqdm bar; counts steps.

    Returns:
        Images (B, C, *spatial) after the last step, without a graph.
    """
    for t in timesteps:
        for hook in hooks:
            sample = hook.before_model(sample, t)
        with torch.set_grad_enabled(sample.requires_grad):
            step = scheduler.posterior(denoiser(sample, t), t, sample)
        with torch.no_grad():
            for hook in hooks:
                step = hook.on_step(step)
            sample = step.draw(generators).detach()
            for hook in hooks:
                sample = hook.after_step(sample, step)
        if progress is not None:
            progress.update(1)
    return sample


def make_generators(
    seed: int, sample_ids: Sequence[Hashable], device: torch.device | str = "cpu", stream: Sequence[Hashable] = ()
) -> list[torch.Generator]:
    """Make one generator per sample from (seed, sample id, stream).

    The same three give the same noise on the same kind of device, whatever the batch, its order or the process.

    Args:
        seed: seed of the run.
        sample_ids: one identity per sample: a case name, a hash of its pixels.
        device: where the noise is drawn; the device of the images.
        stream: names an independent stream for the same sample, for example the number of a pass.
    """
    generators = []
    for sample_id in sample_ids:
        digest = hashlib.sha256(repr((int(seed), str(sample_id), *stream)).encode()).digest()
        generators.append(torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return generators


def noised(
    scheduler: Any, image: torch.Tensor, t: int, generators: Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Noise clean images to a timestep: sqrt(A) x + sqrt(1 - A) noise (Diff-ICE, eq. 1)."""
    alpha_bar = scheduler.alpha_bar(t)
    start = Step(alpha_bar**0.5 * image, 1 - alpha_bar, 0.0, image, image, t)
    return start.draw(generators)
