# SPDX-License-Identifier: Apache-2.0
"""Does a classifier trained on few subjects gain from their counterfactuals? Arms, training and comparisons.

The bundle's classifier is trained from scratch on few subjects unseen by the bundle's networks, alone and with each
arm's additions, and tested on other subjects. Arms with additions train for twice as many updates, so they are
compared with the arm ``duplicates``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.counterfactual.tables import Figure
from benchmarks.counterfactual.task import apply
from medcf.metrics.bootstrap import bootstrap_interval

__all__ = [
    "ARMS",
    "CONTROL",
    "METHODS",
    "Arm",
    "Plan",
    "Pool",
    "Run",
    "Subjects",
    "run_arm",
    "scores",
    "summarize",
    "train",
]

CONTROL = "duplicates"


@dataclass(frozen=True)
class Subjects:
    """Images (N, 1, X, Y, Z) in [-1, 1] and their classes (N,)."""

    image: Tensor
    label: Tensor

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self.label)


@dataclass(frozen=True)
class Pool:
    """Subjects that training sets are drawn from, with everything an arm may add of them.

    Attributes:
        label: (N,) 0 or 1.
        parts: images by name, (N, 1, X, Y, Z): "image"; "reconstruction", through the same generator to the same
            class; "counterfactual", to the other class; "difference", the same with the reconstruction subtracted;
            "truth", the true other state; "resampled", down- and up-sampled; of every name in `METHODS`, that method's
            counterfactuals.
    """

    label: Tensor
    parts: Mapping[str, Tensor]

    def draw(self, count: int, seed: int) -> NDArray[np.int64]:
        """Draw the same number of subjects of both classes."""
        rng = np.random.default_rng([0xA06, seed])
        label = self.label.numpy()
        halves = [rng.choice(np.flatnonzero(label == k), count // 2, replace=False) for k in (0, 1)]
        return np.concatenate(halves)

    def subjects(self, parts: Sequence[str], chosen: NDArray[np.int64]) -> Subjects:
        """Put the parts of the chosen subjects together; the parts of `OTHER_CLASS` carry the other label."""
        label = self.label[chosen]
        labels = [1 - label if part in OTHER_CLASS else label for part in parts]
        return Subjects(torch.cat([self.parts[part][chosen] for part in parts]), torch.cat(labels))


#: The paper's competitors with its settings, as rows of `benchmarks.brain.rows`; for DDIM inversion it names none.
METHODS = {
    "ilvr_2_250": "ILVR, n = 2, T = 250",
    "ilvr_2_500": "ILVR, n = 2, T = 500",
    "ilvr_4_250": "ILVR, n = 4, T = 250",
    "ddim_inversion_250_w_3": "DDIM inversion, 250 of 1000",
    "ddim_inversion_500_w_3": "DDIM inversion, 500 of 1000",
}
OTHER_CLASS = ("counterfactual", "difference", "truth", *METHODS)


@dataclass(frozen=True)
class Arm:
    """What a classifier is trained on.

    Attributes:
        label: row of the table.
        parts: names in `Pool`.
        factor: updates, relative to the originals alone.
    """

    label: str
    parts: tuple[str, ...]
    factor: int = 2


ARMS = {
    "original": Arm("originals", ("image",), 1),
    CONTROL: Arm("originals twice (control)", ("image", "image")),
    "reconstruction": Arm("originals + their reconstructions (control)", ("image", "reconstruction")),
    "counterfactual": Arm("originals + counterfactuals", ("image", "counterfactual")),
    "difference": Arm("originals + counterfactuals, reconstruction subtracted", ("image", "difference")),
    "regenerated": Arm("reconstructions + counterfactuals", ("reconstruction", "counterfactual")),
    "resampled": Arm("originals + the same down- and up-sampled (control)", ("image", "resampled")),
    "same_resolution": Arm("down- and up-sampled originals + counterfactuals", ("resampled", "counterfactual")),
    **{name: Arm(f"originals + {label}", ("image", name)) for name, label in METHODS.items()},
    "truth": Arm("originals + true other state (ceiling)", ("image", "truth")),
}


@dataclass(frozen=True)
class Plan:
    """How classifiers are trained and chosen.

    Attributes:
        count: subjects in a training set.
        updates: of the originals alone.
        batch_size: images an update (the paper's).
        seeds: one training set and one initialization each.
        search_seeds: number of further seeds that the learning rate is searched with.
        trials: learning rates, log-uniform between 0.003 and 0.1, the same for every arm.
        momentum, weight_decay: of SGD.
    """

    count: int = 16
    updates: int = 60
    batch_size: int = 4
    seeds: int = 8
    search_seeds: int = 2
    trials: int = 3
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def learning_rates(self) -> list[float]:
        """Draw the candidates, one in each equal part of the logarithmic range."""
        low, high = np.log([0.003, 0.1])
        places = (np.arange(self.trials) + np.random.default_rng(0x1E).random(self.trials)) / self.trials
        return np.exp(low + places * (high - low)).tolist()


@dataclass(frozen=True)
class Run:
    """What an arm came to.

    Attributes:
        learning_rate: the one that was chosen.
        logits: margin of class 1 of every test subject by every seed (S, N).
    """

    learning_rate: float
    logits: NDArray[np.float64]


def train(network: nn.Module, subjects: Subjects, updates: int, learning_rate: float, plan: Plan, seed: int) -> None:
    """Train a classifier in place: SGD with a warm-up and a cosine decay, images mirrored left to right at random."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=updates, pct_start=0.2, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(seed)
    network.train()
    order: list[int] = []
    for _ in range(updates):
        while len(order) < plan.batch_size:
            order += torch.randperm(len(subjects), generator=generator).tolist()
        batch, order = order[: plan.batch_size], order[plan.batch_size :]
        mirrored = torch.rand(len(batch), 1, 1, 1, 1, generator=generator) < 0.5
        image = subjects.image[batch]
        loss = nn.functional.cross_entropy(network(torch.where(mirrored, image.flip(2), image)), subjects.label[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def run_arm(
    arm: Arm,
    pool: Pool,
    validation: Subjects,
    test: Subjects,
    make_network: Callable[[], nn.Module],
    plan: Plan,
    advance: Callable[[int], object] = lambda steps: None,
) -> Run:
    """Search the learning rate on the validation subjects, then train with every seed and apply to the test subjects.

    Args:
        arm: what to train on.
        pool: where training sets are drawn from; the same for every arm and seed.
        validation: subjects that choose the learning rate, by accuracy, then by loss.
        test: other subjects.
        make_network: makes an untrained classifier, images to logits (B, 2).
        plan: how.
        advance: called with 1 after every training.
    """

    def margins(seed: int, learning_rate: float, images: Tensor) -> Tensor:
        torch.manual_seed(seed)
        network = make_network()
        subjects = pool.subjects(arm.parts, pool.draw(plan.count, seed))
        train(network, subjects, arm.factor * plan.updates, learning_rate, plan, seed)
        logits = apply(network, images, 16)
        advance(1)
        return (logits[:, 1] - logits[:, 0]).double()

    def rank(learning_rate: float) -> tuple[float, float]:
        found = torch.stack([margins(1000 + k, learning_rate, validation.image) for k in range(plan.search_seeds)])
        truth = validation.label.double().expand_as(found)
        loss = nn.functional.binary_cross_entropy_with_logits(found, truth)
        return -float(((found > 0) == (truth > 0.5)).double().mean()), float(loss)

    best = min(plan.learning_rates(), key=rank)
    return Run(best, torch.stack([margins(seed, best, test.image) for seed in range(plan.seeds)]).numpy())


def scores(logits: NDArray[np.float64], label: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Accuracy, balanced accuracy and AUC of every seed (S,) from margins (S, N) and classes (N,)."""
    hits = (logits > 0) == (label == 1)
    return {
        "accuracy": hits.mean(1),
        "balanced": (hits[:, label == 0].mean(1) + hits[:, label == 1].mean(1)) / 2,
        "auc": np.array([roc_auc_score(label, each) for each in logits]),
    }


def summarize(
    runs: Mapping[str, Run], label: NDArray[np.int64], control: str = CONTROL
) -> dict[str, dict[str, Figure]]:
    """Compare arms: mean of each score, and its paired difference to the control.

    Args:
        runs: arms by name.
        label: classes of the test subjects.
        control: the arm that the others are held against.

    Returns:
        By arm: ``accuracy``, ``balanced``, ``auc`` with t intervals over seeds, and where it is not the control
        ``gain`` and ``auc_gain`` (t interval of the paired difference over seeds) and ``gain_subjects`` (the same
        gain of accuracy with a bootstrap interval over test subjects), and ``gain_original``, the same as ``gain``
        against the originals alone.
    """
    found = {name: scores(run.logits, label) for name, run in runs.items()}
    rows: dict[str, dict[str, Figure]] = {}
    for name, run in runs.items():
        row = {key: _over_seeds(values) for key, values in found[name].items()}
        if name != control:
            row["gain"] = _over_seeds(found[name]["accuracy"] - found[control]["accuracy"])
            row["auc_gain"] = _over_seeds(found[name]["auc"] - found[control]["auc"])
            hits = [((each.logits > 0) == (label == 1)).mean(0) for each in (run, runs[control])]
            gain = hits[0] - hits[1]
            low, high = bootstrap_interval(np.mean, gain)
            row["gain_subjects"] = Figure(float(gain.mean()), low, high, len(gain))
        if name != "original" and "original" in runs:
            row["gain_original"] = _over_seeds(found[name]["accuracy"] - found["original"]["accuracy"])
        row["learning_rate"] = Figure(run.learning_rate)
        rows[name] = row
    return rows


def _over_seeds(values: NDArray[np.float64]) -> Figure:
    """Mean with Student's 95 % interval."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return Figure(mean, mean - half, mean + half, len(values))
