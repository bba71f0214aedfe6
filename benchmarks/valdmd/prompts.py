# SPDX-License-Identifier: Apache-2.0
"""Samples from pure noise by prompt: does an independent judge recognize what was asked for?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.counterfactual.tables import Measure
from benchmarks.counterfactual.task import Cases, apply
from benchmarks.valdmd.sections import Section, summary
from benchmarks.valdmd.task import ChestTask, labeled_chests
from medcf.networks import Condition, Denoiser
from medcf.phantoms import ChestState
from medcf.phantoms.chest.captions import draw_caption
from medcf.sampling import draw_samples, make_generators

__all__ = ["PROMPTED", "draw_prompts", "prompt_section", "sample"]

logger = logging.getLogger(__name__)

CLASSES = ("normal", "lung opacity", "COVID-19", "viral pneumonia")
GUIDANCES, STEPS, BATCH = (1.0, 3.0, 6.0), 20, 32
_THEME = "recognized"
PROMPTED = (
    *(Measure(f"judge_{k}", f"judge: {name}", _THEME, "↑", 0, True) for k, name in enumerate(CLASSES)),
    Measure("judge", "judge: all", _THEME, "↑", 0, True),
    Measure("f", "f: all", _THEME, "↑", 0, True),
)


def draw_prompts(label: int, count: int, *, held_out: bool, seed: int = 0) -> list[str]:
    """Draw captions of random states of a class: the training's wordings, or those that no training caption has."""
    rng = np.random.default_rng([seed, label])
    return [draw_caption(ChestState.draw(rng, label), rng, held_out=held_out) for _ in range(count)]


@torch.no_grad()
def sample(task: ChestTask, network: nn.Module, prompts: Sequence[str], *, guidance: float, seed: int = 0) -> Tensor:
    """Denoise one image per prompt from pure noise.

    Args:
        task: with the recipe and the latents.
        network: has ``text_encoder``.
        prompts: N texts.
        guidance: classifier-free guidance, 1 for none.
        seed: of the noise, which depends on the number of the prompt alone.

    Returns:
        (N, 1, H, W) in [-1, 1].
    """
    scheduler = task.recipe.open().get_parsed_content("scheduler")
    shape, encoder = task.space.encode(task.cases.image[:1]).shape[1:], network.text_encoder
    null = Condition(context=encoder.embed([""]))  # type: ignore[union-attr, operator]
    parts = []
    for chosen in torch.arange(len(prompts)).split(BATCH):
        generators = make_generators(seed, chosen.tolist(), task.cases.image.device, ("prompts",))
        context = encoder.embed([prompts[i] for i in chosen.tolist()])  # type: ignore[union-attr, operator]
        condition = Condition(context=context, null=null, scale=guidance)
        drawn = draw_samples(Denoiser(network, scheduler, condition), scheduler, shape, STEPS, generators)
        parts.append(task.space.decode(drawn).clamp(-1, 1))
    return torch.cat(parts)


def prompt_section(task: ChestTask, count: int) -> Section:
    """Count recognized samples of each class by wording and guidance, and recognized phantoms.

    Args:
        task: judges, and the latents' shape.
        count: samples per class.
    """
    network = task.recipe.open().get_parsed_content("network").eval()
    section = Section(PROMPTED)
    classes = range(len(CLASSES))
    for held_out, guidance in [(False, g) for g in GUIDANCES] + [(True, GUIDANCES[1])]:
        texts = [text for k in classes for text in draw_prompts(k, count, held_out=held_out)]
        images = sample(task, network, texts, guidance=guidance)
        kind = "held-out wordings" if held_out else "the training's wordings"
        _add(section, task, f"{kind}, guidance {guidance:g}", images, torch.arange(4).repeat_interleave(count))
        logger.info("%s, guidance %g: measured", kind, guidance)
    phantoms = labeled_chests(task, 4 * count, balance=(1.0, 1.0, 1.0, 1.0))
    _add(section, task, "phantoms", phantoms["image"], phantoms["label"])
    return section


def _add(section: Section, task: ChestTask, label: str, images: Tensor, wanted: Tensor) -> None:
    names = [str(i) for i in range(len(images))]  # every sample counts as a subject
    cases = Cases(images, names, names)
    judge, f = (apply(network, images).argmax(1) == wanted for network in (task.judge, task.classifier))
    figures = {f"judge_{k}": summary(judge, cases, wanted == k) for k in range(len(CLASSES))}
    section.add(label, {**figures, "judge": summary(judge, cases), "f": summary(f, cases)})
