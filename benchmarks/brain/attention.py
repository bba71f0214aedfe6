# SPDX-License-Identifier: Apache-2.0
"""The value of self-attention and injection for a trained network: its loss with, without, and with another subject."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn

from benchmarks.brain.task import brain_task
from benchmarks.counterfactual.environment import describe_command
from medcf.networks import AttentionInjection
from medcf.runtime.performance import autocast

__all__ = ["attention_losses", "main"]


@torch.no_grad()
def attention_losses(network: nn.Module, scheduler: object, image: Tensor, label: Tensor, t: int) -> dict[str, float]:
    """Measure the mean squared error of the network's prediction, always of the same noised images.

    Args:
        network: a class-token network with v-prediction.
        scheduler: with MONAI's ``add_noise`` and ``get_velocity``.
        image: (B, 1, *spatial) in [-1, 1].
        label: classes (B,).
        t: time step.

    Returns:
        Loss by name: as it is; reading the same image under other noise; reading another subject; without
        self-attention; with self-attention averaged over all tokens, so that only global statistics come through.
    """
    generator = torch.Generator().manual_seed(t)
    noise, other = (torch.randn(image.shape, generator=generator) for _ in range(2))
    steps, count = torch.full((len(image),), t), len(image)
    noised = scheduler.add_noise(image, noise, steps)  # type: ignore[attr-defined]
    reference = scheduler.add_noise(image, other, steps)  # type: ignore[attr-defined]
    velocity = scheduler.get_velocity(image, noise, steps)  # type: ignore[attr-defined]

    def loss(prediction: Tensor) -> float:
        return float((prediction.float() - velocity).square().mean())

    def alone() -> float:
        return loss(network(noised, steps, class_labels=label))

    def reading(stranger: int) -> float:
        with AttentionInjection(network) as injection:
            injection.reference = [*range(count, 2 * count)] * 2
            stack = torch.cat([noised, reference.roll(stranger, 0)])
            return loss(network(stack, steps.repeat(2), class_labels=label.repeat(2))[:count])

    return {
        "alone": alone(),
        "reading itself": reading(0),
        "reading another subject": reading(1),
        "without self-attention": _hooked(network, lambda tokens: torch.zeros_like(tokens), alone),
        "averaged self-attention": _hooked(
            network, lambda tokens: tokens.mean(1, keepdim=True).expand_as(tokens), alone
        ),
    }


def _hooked(network: nn.Module, change: Callable[[Tensor], Tensor], run: Callable[[], float]) -> float:
    """Run with the output of every self-attention block (B, tokens, features) changed."""
    blocks = [module for module in network.modules() if isinstance(module, SABlock)]
    handles = [block.register_forward_hook(lambda _block, _inputs, tokens: change(tokens)) for block in blocks]
    try:
        return run()
    finally:
        for handle in handles:
            handle.remove()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brain.attention", description=__doc__)
    parser.add_argument("--bundle", default="controlcg")
    parser.add_argument("--count", type=int, default=16, help="test phantoms (default 16)")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[100, 300, 500, 700, 900])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = brain_task(options.bundle, count=options.count, references=8)
    config = task.recipe.open()
    network, scheduler = config.get_parsed_content("network"), config.get_parsed_content("scheduler")
    with autocast("cpu", enabled="auto"):
        rows = {t: attention_losses(network, scheduler, task.cases.image, task.label, t) for t in options.timesteps}
    names = list(next(iter(rows.values())))
    lines = ["| loss at t | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    lines += [f"| {t} | " + " | ".join(f"{row[name]:.5f}" for name in names) + " |" for t, row in rows.items()]
    sys.stdout.write(
        "\n".join(lines) + f"\n\nCommand: `{describe_command('benchmarks.brain.attention', arguments)}`.\n"
    )


if __name__ == "__main__":
    main()
