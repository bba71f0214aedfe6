# SPDX-License-Identifier: Apache-2.0
"""The supervised ceiling: a U-Net that learns from pairs what no scanner provides, the truth of an input.

It predicts the mean of all truths that fit an input, the nearest that an image can come to the truth by its squared
error; methods that see no pairs cannot be expected to come closer. It is blurred, need not flip, and is no method.
``python -m benchmarks.counterfactual.ceiling`` trains it alone; its weights are not shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from benchmarks.counterfactual.phantoms import phantom_pairs
from benchmarks.counterfactual.task import Recipe, apply
from medcf.metrics import RelativeTruthError
from medcf.training.state import save_atomically

__all__ = ["STEPS", "make_network", "regression", "train"]

logger = logging.getLogger(__name__)

#: 100 s of processor time on one core, almost half of it for rendering the pairs.
STEPS, PAIRS, BATCH, RATE, SEED = 600, 450, 16, 2e-3, 0
FEATURES = (8, 16, 32, 48, 64, 8)


def make_network() -> nn.Module:
    """Return an untrained network: images (B, 1, H, W) to the change that they lack."""
    return BasicUNet(2, 1, 1, features=FEATURES, norm=("instance", {"affine": True}))


def train(image: Tensor, truth: Tensor, *, steps: int = STEPS, seed: int = SEED) -> nn.Module:
    """Train the network on pairs by the squared error, mirrored at random.

    Args:
        image: inputs (N, 1, H, W) in [-1, 1].
        truth: their paired truth.
        steps: number of batches.
        seed: seed of weights, batches and mirroring.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(image), (BATCH,), generator=generator)
        before, after = image[chosen], truth[chosen]
        if torch.rand((), generator=generator) < 0.5:
            before, after = before.flip(-1), after.flip(-1)
        loss = (before + network(before) - after).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info("regression on pairs: step %d of %d, squared error %.4f", step, steps, float(loss.detach()))
    return network.eval()


def regression(
    recipe: Recipe, work: Path, *, steps: int = STEPS, pairs: int = PAIRS, seed: int = SEED, threads: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return the trained regression, images (N, 1, H, W) to images; the stored one if its recipe is the same.

    Args:
        recipe: the bundle, for the grid.
        work: folder of its weights.
        steps: number of batches.
        pairs: number of training phantoms.
        seed: seed of all of it.
        threads: threads of torch.
    """
    get = recipe.open().get_parsed_content
    question = repr((FEATURES, BATCH, RATE, steps, pairs, seed, tuple(get("spatial_size")), get("spacing")))
    path = work / f"ceiling-{hashlib.sha256(question.encode()).hexdigest()[:12]}.pt"
    network = make_network()
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        before, _ = torch.get_num_threads(), torch.set_num_threads(threads)
        network = train(*phantom_pairs(recipe, "train", pairs), steps=steps, seed=seed)
        torch.set_num_threads(before)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomically(network.state_dict(), path)
    network.eval()
    return lambda images: (images + apply(network, images)).clamp(-1, 1)


def main() -> None:
    """Train it and print its error on heads of another split, over that of doing nothing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counterfactual.ceiling", description=__doc__)
    parser.add_argument("--bundle", default="diffice", help="bundle whose grid is used")
    parser.add_argument("--work", type=Path, default=Path("output/benchmarks/phantoms"), help="folder of the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--split", default="val", help="heads to measure it on (default val; test for figures)")
    parser.add_argument("--count", type=int, default=32, help="number of these heads (default 32)")
    options = parser.parse_args()
    recipe = Recipe(options.bundle, ("inference.json",))
    made = {name: getattr(options, name) for name in ("steps", "pairs", "seed", "threads")}
    network = regression(recipe, options.work, **made)
    image, truth = phantom_pairs(recipe, options.split, options.count)
    metric = RelativeTruthError()
    metric(network(image), truth, image=image)
    low, high = metric.interval()
    heads = f"{options.count} heads of the split {options.split}"
    sys.stdout.write(f"error over doing nothing: {metric.aggregate():.3f} [{low:.3f}, {high:.3f}], {heads}\n")


if __name__ == "__main__":
    main()
