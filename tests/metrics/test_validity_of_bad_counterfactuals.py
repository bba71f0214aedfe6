# SPDX-License-Identifier: Apache-2.0
"""Deliberately bad counterfactuals, and which of the validity metrics say so.

The subjects are bright blobs, on the left (class 0) or on the right (class 1). Classifier and judge are perceptrons of
other weights that learned from other images; the classifier's first weights are large, so that it can be attacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from medcf.metrics.agreement import OracleAgreement
from medcf.metrics.confidence import BoundedKL
from medcf.metrics.cout import COUT
from medcf.metrics.identity import ReIdentification, pooled_pixels
from medcf.metrics.robustness import FlipSurvival, SeedAgreement
from medcf.metrics.validity import FlipRatio

SIZE = 24


def blobs(count: int, seed: int, *, label: int | None = None, place_seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 24, 24) and their classes; the row of a blob tells whose it is."""
    generator = torch.Generator().manual_seed(seed)
    places = generator if place_seed is None else torch.Generator().manual_seed(place_seed)
    labels = torch.arange(count) % 2 if label is None else torch.full((count,), label)
    grid = torch.arange(float(SIZE))
    row, column = 11.5 + 2.5 * torch.randn(count, generator=places), torch.where(labels == 1, 16.0, 7.0)
    distance = (grid[None, :, None] - row[:, None, None]) ** 2 + (grid[None, None] - column[:, None, None]) ** 2
    images = -0.6 + torch.exp(-distance / 16) + 0.2 * torch.randn(count, SIZE, SIZE, generator=generator)
    return images.clamp(-1, 1)[:, None], labels


def trained(count: int, seed: int, initial_std: float) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 32), nn.ReLU(), nn.Linear(32, 2))
    nn.init.normal_(network[1].weight, std=initial_std)
    images, labels = blobs(count, seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def attacked(network: nn.Module, images: Tensor, confidence: float = 0.6) -> Tensor:
    """Signed gradient steps of 0.01 (Madry et al. 2018) until the network calls each image class 1."""
    images = images.clone()
    for _ in range(40):
        images.requires_grad_(True)
        probability = network(images).softmax(1)[:, 1]
        (gradient,) = torch.autograd.grad(probability.log().sum(), images)
        going = (probability < confidence).view(-1, 1, 1, 1)
        images = (images.detach() + 0.01 * gradient.sign() * going).clamp(-1, 1)
    return images.detach()


@dataclass
class Setting:
    classifier: nn.Module
    judge: nn.Module
    inputs: Tensor
    candidates: dict[str, Tensor]

    def score(self, metric: Any, name: str) -> Any:
        """Show the metric images."""
        metric(self.candidates[name], self.inputs)
        return metric

    def score_logits(self, metric: Any, name: str) -> float:
        """Show the metric what the classifier says."""
        with torch.no_grad():
            metric(self.classifier(self.candidates[name]), self.classifier(self.inputs))
        return metric.aggregate()

    def agreement(self, name: str) -> Any:
        return self.judged(self.candidates[name], self.inputs)

    @torch.no_grad()
    def judged(self, *images: Tensor) -> Any:
        """Show the metric what judge and classifier say of counterfactuals and inputs."""
        metric = OracleAgreement()
        logits, input_logits = map(self.classifier, images)
        metric(*map(self.judge, images), logits=logits, input_logits=input_logits)
        return metric

    def identity(self, name: str) -> float:
        """Rank-3 re-identification by the row of the blob, so columns are averaged out."""
        metric = ReIdentification(k=3)
        rows = [pooled_pixels(images, (SIZE, 1)) for images in (self.candidates[name], self.inputs)]
        metric(*rows, subject=torch.arange(len(self.inputs)))
        return metric.aggregate()


@pytest.fixture(scope="module")
def setting() -> Setting:
    classifier, judge = trained(64, 1, 0.3), trained(256, 2, 0.03)
    inputs, _ = blobs(32, 50, label=0, place_seed=7)
    truth, _ = blobs(32, 51, label=1, place_seed=7)  # the same subjects, on the other side
    candidates = {
        "truth": truth,
        "unchanged": inputs,
        "attack": attacked(classifier, inputs),
        "noise": torch.rand(inputs.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1,
        "another subject": truth[:1].expand_as(truth).clone(),
    }
    return Setting(classifier, judge, inputs, candidates)


def test_the_true_counterfactual_wins_everywhere(setting: Setting) -> None:
    assert setting.score_logits(FlipRatio(), "truth") == 1
    assert setting.score(FlipSurvival(setting.classifier), "truth").aggregate() > 0.9
    agreement = setting.agreement("truth")
    assert (agreement.aggregate(), agreement.reference().mean) == (1, 0)
    assert setting.score(COUT(setting.classifier), "truth").aggregate() > 0.2


def test_the_unchanged_input_flips_nothing_and_has_nothing_to_transfer(setting: Setting) -> None:
    assert setting.score_logits(FlipRatio(), "unchanged") == 0
    assert setting.score_logits(BoundedKL(), "unchanged") > 0.9
    assert setting.score(COUT(setting.classifier), "unchanged").aggregate() < -0.8
    assert setting.score(FlipSurvival(setting.classifier), "unchanged").counts().entered == 0


def test_a_gradient_attack_fools_the_circular_metrics_only(setting: Setting) -> None:
    change = (setting.candidates["attack"] - setting.inputs).abs().max()
    assert change < 0.2  # a tenth of the range: no blob moves
    assert setting.score_logits(FlipRatio(), "attack") == 1
    survival = setting.score(FlipSurvival(setting.classifier), "attack")
    assert survival.counts().entered == 32
    assert survival.aggregate() < 0.1
    assert survival.by_disturbance()["blur"].mean < 0.3
    assert setting.score(COUT(setting.classifier), "attack").aggregate() < 0  # its steps are equal in every pixel
    agreement = setting.agreement("attack")
    assert agreement.aggregate() < 0.1
    assert agreement.interval()[1] < 0.3


def test_tensors_with_metadata_give_the_same_figures(setting: Setting) -> None:
    pairs = [(setting.candidates["attack"], setting.inputs)]
    pairs.append((MetaTensor(pairs[0][0]), MetaTensor(pairs[0][1])))
    for metric_class in (FlipSurvival, COUT):
        plain, meta = metric_class(setting.classifier), metric_class(setting.classifier)
        plain(*pairs[0])
        meta(*pairs[1])
        assert type(meta.get_buffer()) is Tensor
        assert torch.equal(plain.get_buffer(), meta.get_buffer())
    assert setting.judged(*pairs[1]).aggregate() == setting.agreement("attack").aggregate()


def test_noise_flips_by_chance_and_with_another_seed_by_chance_again(setting: Setting) -> None:
    assert 0.2 < setting.score_logits(FlipRatio(), "noise") < 0.9
    assert setting.agreement("noise").aggregate() < 0.9
    generator = torch.Generator().manual_seed(11)
    noises = torch.rand(32, 4, 1, SIZE, SIZE, generator=generator) * 2 - 1
    again = SeedAgreement()
    with torch.no_grad():
        again(setting.classifier(noises.flatten(0, 1)).view(32, 4, 2), setting.classifier(setting.inputs))
    assert again.aggregate() < 0.9


def test_another_subjects_image_is_valid_to_every_judge_and_only_identity_tells(setting: Setting) -> None:
    assert setting.score_logits(FlipRatio(), "another subject") == 1
    assert setting.agreement("another subject").aggregate() == 1
    assert setting.identity("another subject") == pytest.approx(3 / 32)  # chance
    assert setting.identity("truth") > 3 * setting.identity("another subject")
