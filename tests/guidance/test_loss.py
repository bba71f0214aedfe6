# SPDX-License-Identifier: Apache-2.0
"""CounterfactualLoss: the formula, its invariance to the batch, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medcf.guidance import CounterfactualLoss, PerceptualFeatures


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 5, 1, 6, 6, generator=generator) * 2 - 1


TARGET = torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("class_loss", ["cross_entropy", "logit"])
def test_loss_is_the_formula_written_out(classifier, images, class_loss):
    image, reference = images
    features = nn.Conv2d(1, 2, 3)
    terms = CounterfactualLoss(classifier, features, 7.0, 30.0, class_loss).bind(reference, TARGET)(image)
    total = 0.0
    for i in range(5):
        logits = classifier(image[i : i + 1])[0]
        wanted = -logits[TARGET[i]]
        if class_loss == "cross_entropy":
            wanted = wanted + logits.exp().sum().log()
        distance = (features(image[i : i + 1]) - features(reference[i : i + 1])).pow(2).mean()
        torch.testing.assert_close(terms.classification[i], wanted)
        torch.testing.assert_close(terms.perceptual[i], distance)
        torch.testing.assert_close(terms.logits[i], logits)
        total = total + 7.0 * wanted + 30.0 * distance
    torch.testing.assert_close(terms.total, total)


def test_gradient_of_an_image_does_not_depend_on_its_batch(classifier, images):
    image, reference = images
    loss = CounterfactualLoss(classifier, nn.Conv2d(1, 2, 3), 40.0, 30.0)

    def gradient(pick):
        point = image[pick].clone().requires_grad_()
        return torch.autograd.grad(loss.bind(reference[pick], TARGET[pick])(point).total, point)[0]

    together = gradient(slice(0, 5))
    for i in range(5):
        torch.testing.assert_close(gradient(slice(i, i + 1))[0], together[i], rtol=1e-5, atol=1e-6)


def test_scale_may_be_given_per_sample(classifier, images):
    image, reference = images
    scales = torch.tensor([1.0, 0.0, 5.0, 2.0, 3.0])
    terms = CounterfactualLoss(classifier).bind(reference, TARGET, scales)(image)
    torch.testing.assert_close(terms.total, (scales * terms.classification).sum())
    assert terms.perceptual.abs().max() == 0


def test_a_scale_of_zero_leaves_the_class_out_and_does_not_mean_the_default(classifier, images):
    image, reference = images
    terms = CounterfactualLoss(classifier, nn.Conv2d(1, 2, 3), 40.0, 30.0).bind(reference, TARGET, 0.0)(image)
    torch.testing.assert_close(terms.total, 30.0 * terms.perceptual.sum())
    assert terms.classifier_scale == 0


def test_several_layers_weigh_the_same(images):
    image, reference = images

    def perceptual(x):
        return [x, x.mean(dim=(2, 3))]  # 36 features and 1

    def constant(x):
        return x.new_zeros(len(x), 2)

    loss = CounterfactualLoss(constant, perceptual)
    terms = loss(image, torch.zeros(5, dtype=torch.long), loss.features(reference))
    pixels = (image - reference).pow(2).mean(dim=(1, 2, 3))
    means = (image - reference).mean(dim=(1, 2, 3)).pow(2)
    torch.testing.assert_close(terms.perceptual, (pixels + means) / 2)


def test_features_of_the_original_are_computed_once(images):
    calls = []

    def perceptual(x):
        calls.append(x)
        return x

    bound = CounterfactualLoss(lambda x: x.flatten(1)[:, :3], perceptual).bind(images[1], TARGET)
    bound(images[0])
    bound(images[0])
    assert len(calls) == 3  # one of the original, one per evaluation


def test_parameters_collect_no_gradient(classifier, images):
    point = images[0].clone().requires_grad_()
    torch.autograd.grad(CounterfactualLoss(classifier).bind(images[1], TARGET)(point).total, point)
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_half_precision_networks_are_compared_in_float32(images):
    loss = CounterfactualLoss(lambda x: x.flatten(1)[:, :3].bfloat16(), lambda x: x.bfloat16())
    terms = loss.bind(images[1], TARGET)(images[0])
    assert terms.total.dtype == terms.perceptual.dtype == terms.logits.dtype == torch.float32


def test_unknown_class_loss_is_refused():
    with pytest.raises(ValueError, match="cross_entropy"):
        CounterfactualLoss(nn.Identity(), class_loss="hinge")


def test_features_of_the_classifier_itself_share_its_forward(classifier, images):
    image, reference = images
    shared = PerceptualFeatures(classifier, ["0", "1"])
    apart = PerceptualFeatures(copy.deepcopy(classifier), ["0", "1"])
    gradients, calls = [], []
    classifier.register_forward_hook(lambda *_: calls.append(1))
    for features in (shared, apart):
        bound = CounterfactualLoss(classifier, features).bind(reference, TARGET)
        calls.clear()
        point = image.clone().requires_grad_()
        gradients.append(torch.autograd.grad(bound(point).total, point)[0])
        assert len(calls) == 1
    torch.testing.assert_close(gradients[0], gradients[1])
    normalized = PerceptualFeatures(classifier, "0", mean=0.5)
    assert shared.shares_forward_with(classifier)
    assert not normalized.shares_forward_with(classifier)
    assert not apart.shares_forward_with(classifier)


def test_given_features_of_the_original_are_not_computed_again(classifier, images):
    image, reference = images
    calls = []

    def features(x):
        calls.append(len(x))
        return [x.mean(dim=1), x.square()]

    loss = CounterfactualLoss(classifier, features, 7.0, 30.0)
    known = loss.features(reference)
    calls.clear()
    given = loss.bind(reference, TARGET, None, known)
    assert calls == []
    torch.testing.assert_close(given(image).total, loss.bind(reference, TARGET)(image).total)
    assert given(image).classifier_scale == 7.0
    assert given(image).perceptual_scale == 30.0
