# SPDX-License-Identifier: Apache-2.0
"""DreamBooth: fine-tuning on a few images, with the model's own images of their kind so that it stays what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.utils import CommonKeys
from torch import Tensor
from torch.utils.data import Dataset

from medcf.networks import Condition, Denoiser
from medcf.sampling import draw_samples, make_generators
from medcf.schedulers import RespacedScheduler
from medcf.training.state import save_atomically

__all__ = ["DreamBoothDataset", "drawn_priors"]


class DreamBoothDataset(Dataset[dict[str, Any]]):
    """Instances, each with a prior: the i-th instance and the i-th prior, which start over when they are fewer.

    Args:
        instances: dataset with ``image``, and ``caption`` or ``label``.
        priors: dataset with ``image`` and ``caption``, such as `drawn_priors`.
        prompts: caption of all instances, or one for each class, by ``label``; None keeps their own.

    Raises:
        ValueError: if there are no instances or no priors.
    """

    def __init__(self, instances: Any, priors: Any, prompts: str | Sequence[str] | None = None) -> None:
        self.instances = instances
        self.priors = priors
        self.prompts = prompts
        self.class_names = getattr(instances, "class_names", None)
        self.digest = getattr(instances, "digest", None)
        if not len(instances) or not len(priors):
            raise ValueError(f"There are {len(instances)} instances and {len(priors)} priors; give at least one each.")

    def __len__(self) -> int:
        """Number of instances."""
        return len(self.instances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an instance, and its prior as ``prior_image`` and ``prior_caption``."""
        item, prior = dict(self.instances[index]), self.priors[index % len(self.priors)]
        if isinstance(self.prompts, str):
            item["caption"] = self.prompts
        elif self.prompts is not None:
            item["caption"] = self.prompts[int(item[CommonKeys.LABEL])]
        return {**item, "prior_image": prior[CommonKeys.IMAGE], "prior_caption": prior["caption"]}


def drawn_priors(
    network: Any,
    scheduler: RespacedScheduler,
    prompt: str,
    shape: Sequence[int],
    path: str | Path,
    *,
    count: int = 200,
    num_inference_steps: int = 50,
    guidance_scale: float = 3.0,
    batch_size: int = 16,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Draw the priors: what the network shows for a general prompt before it is fine-tuned (DreamBooth, section 3.2).

    Args:
        network: `medcf.networks.PromptUNet` with its trained weights.
        scheduler: the sampler; it must not clip in latents.
        prompt: the general prompt, such as "chest x-ray".
        shape: shape (C, *spatial) of a sample, in latents if the network works in them.
        path: file for the samples; an existing one is read, for a resumed training.
        count: number of priors.
        num_inference_steps: steps of the sampler.
        guidance_scale: classifier-free guidance.
        batch_size: samples per call; with guidance the network sees twice as many.
        seed: seed of the noise.

    Returns:
        Samples with ``image``, on the CPU, and ``caption``.
    """
    with idist.one_rank_first():
        if not Path(path).is_file():
            options = (num_inference_steps, guidance_scale, seed)
            parts = [
                _draw(network, scheduler, prompt, shape, ids, *options) for ids in torch.arange(count).split(batch_size)
            ]
            save_atomically(torch.cat(parts), path)
        drawn = torch.load(path, weights_only=True)
    if tuple(drawn.shape) != (count, *shape):
        raise ValueError(f"{path} holds priors of shape {tuple(drawn.shape)}, not {(count, *shape)}: delete it.")
    return [{CommonKeys.IMAGE: image, "caption": prompt} for image in drawn]


@torch.no_grad()
def _draw(
    network: Any,
    scheduler: RespacedScheduler,
    prompt: str,
    shape: Sequence[int],
    ids: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
) -> Tensor:
    """Draw a batch, one sample per id."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    generators = make_generators(seed, ids.tolist(), device, ("dreambooth", prompt))
    embed = network.text_encoder.embed
    condition = Condition(None, embed([prompt]), Condition(None, embed([""])), guidance_scale)
    denoiser = Denoiser(network, scheduler, condition)
    sample = draw_samples(denoiser, scheduler, shape, num_inference_steps, generators)
    network.train(training)
    return sample.cpu()
