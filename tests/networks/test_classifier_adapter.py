# SPDX-License-Identifier: Apache-2.0
"""Other people's classifiers as the f of a method: their range, size, channels and output; nothing in them changes."""

from __future__ import annotations

import copy
import math
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet
from torch import nn

from medcf.inferers import DiffICEInferer, select_method
from medcf.networks import ClassifierAdapter
from medcf.schedulers import RespacedDDPMScheduler


@pytest.fixture
def explain(gaussian_network):
    """Two passes of Diff-ICE: ``explain(classifier, images, **options)``."""

    def run(classifier, images, **options):
        options = {"num_inference_steps": 20, "strength": 0.25, "num_iterations": 2, "classifier_scales": 6} | options
        method = DiffICEInferer(RespacedDDPMScheduler(), classifier, progress=False, **({"target": 1} | options))
        return method(images, gaussian_network(0.0, 1.0))

    return run


class Sees(nn.Module):
    """Keeps what it is shown; two logits from its mean."""

    def forward(self, image):
        self.image = image
        mean = image.flatten(1).mean(1)
        return torch.stack([-mean, mean], dim=1)


def picture(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("range_", "black", "white"),
    [((-1, 1), -1, 1), ((0, 1), 0, 1), ((0, 255), 0, 255), ((1, 0), 1, 0), ([[0, 1], [2, 5]], (0, 1), (2, 5))],
)
def test_black_and_white_become_the_network_s(range_, black, white):
    network = Sees()
    ramp = torch.linspace(-1, 1, 5).reshape(1, 1, 5, 1)
    ClassifierAdapter(network, range=range_, channels=2)(ramp)
    for channel in range(2):
        low, high = (end if isinstance(end, int) else end[channel] for end in (black, white))
        torch.testing.assert_close(network.image[0, channel, :, 0], torch.linspace(low, high, 5))


def test_imagenet_is_what_torchvision_s_normalization_makes_of_rgb_in_0_to_1():
    network = Sees()
    image = picture(2, 1, 4, 4)
    ClassifierAdapter(network, range="imagenet", channels=3)(image)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(network.image[:, channel], ((image[:, 0] + 1) / 2 - mean) / std)


def test_a_stripe_pattern_shrinks_to_gray_and_not_to_an_alias():
    for shape, size in (((1, 1, 64, 64), 16), ((1, 1, 32, 32, 32), (8, 8, 8))):
        network = Sees()
        stripes = torch.ones(shape)
        stripes[..., ::2] = -1
        ClassifierAdapter(network, size=size)(stripes)
        assert float(network.image[..., 1:-1].abs().max()) < 0.1


def test_it_is_the_network_itself_where_nothing_differs():
    torch.manual_seed(0)
    network = DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2).eval()
    image = picture(2, 1, 16, 16)
    torch.testing.assert_close(ClassifierAdapter(network)(image), network(image), rtol=0, atol=1e-6)


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: None = None


Named = namedtuple("Named", ["loss", "logits"])
LOGITS = torch.tensor([[1.0, -2.0, 0.5]])


@pytest.mark.parametrize(
    ("output", "head"),
    [
        (LOGITS, "logits"),
        (Output(LOGITS), "logits"),
        ({"logits": LOGITS, "features": LOGITS + 1}, "logits"),
        ({"scores": LOGITS, "features": LOGITS + 1}, "scores"),
        ((LOGITS, LOGITS + 1), "logits"),
        ((LOGITS + 1, LOGITS), 1),
        (Named(LOGITS + 1, LOGITS), "logits"),
        (Output(LOGITS[..., None]), lambda output: output.logits[..., 0]),
        (LOGITS.softmax(1), "probabilities"),
        ({"probabilities": LOGITS.softmax(1)}, "probabilities"),
    ],
)
def test_the_logits_are_found_in_whatever_the_network_returns(output, head):
    found = ClassifierAdapter(lambda image: output, head=head)(picture(1, 1, 4, 4))
    torch.testing.assert_close(found.softmax(1), LOGITS.softmax(1))


@pytest.mark.parametrize(("output", "head"), [(1.2, "logits"), (torch.tensor(1.2).sigmoid().item(), "probabilities")])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_score_becomes_two_classes_whose_softmax_is_its_sigmoid(output, head, shape):
    found = ClassifierAdapter(lambda image: torch.full(shape, output), head=head)(picture(2, 1, 4, 4))
    expected = torch.tensor(1.2).sigmoid()
    torch.testing.assert_close(found.softmax(1), torch.stack([1 - expected, expected]).expand(2, 2))


def test_what_cannot_be_found_is_named():
    image = picture(1, 1, 4, 4)
    with pytest.raises(ValueError, match="head='logits': the network returned dict with scores"):
        ClassifierAdapter(lambda image: {"scores": LOGITS})(image)
    with pytest.raises(ValueError, match=r"gives shape \(1, 2, 4, 4\): logits are \(B, K\)"):
        ClassifierAdapter(lambda image: torch.zeros(1, 2, 4, 4))(image)
    with pytest.raises(ValueError, match="two different values"):
        ClassifierAdapter(Sees(), range=(1, 1))
    with pytest.raises(ValueError, match="'imagenet', with 3 channels"):
        ClassifierAdapter(Sees(), range="imagenet", channels=1)
    with pytest.raises(ValueError, match="does not fit an image with 3 spatial axes"):
        ClassifierAdapter(Sees(), size=(8, 8))(picture(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match="2 channels cannot be repeated"):
        ClassifierAdapter(Sees(), channels=3)(picture(1, 2, 4, 4))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradient_is_that_of_the_composed_function(dims):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6**dims, 2))
    adapter = ClassifierAdapter(network, range=[[0, -1, 2], [1, 3, -4]], size=6, channels=3).double()
    image = picture(1, 1, *(5, 4, 3)[:dims]).double().requires_grad_()
    assert torch.autograd.gradcheck(adapter, (image,))
    assert all(parameter.grad is None for parameter in network.parameters())


def with_batch_norm(dims, channels=3):
    torch.manual_seed(0)
    conv, norm, pool = (getattr(nn, f"{name}{dims}d") for name in ("Conv", "BatchNorm", "AdaptiveAvgPool"))
    layers = [conv(channels, 4, 3), norm(4), nn.Dropout(0.5), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 1)]
    return nn.Sequential(*layers).train()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_explanation_never_changes_a_classifier_in_training_mode(explain, dims, wrapped):
    inner = with_batch_norm(dims, 3 if wrapped else 1)
    if not wrapped:
        inner[-1] = nn.Linear(4, 2)
    inner[0].eval()  # a part that its owner froze stays so, too
    before = copy.deepcopy(inner.state_dict())
    classifier = ClassifierAdapter(inner, range="imagenet", size=12, channels=3) if wrapped else inner
    images = picture(2, 1, *[8] * dims)
    first = explain(classifier, images, target="opposite")
    torch.testing.assert_close(explain(classifier, images, target="opposite"), first)  # no dropout either
    assert all(torch.equal(value, before[name]) for name, value in inner.state_dict().items())
    assert inner.training
    assert not inner[0].training
    assert all(parameter.requires_grad for parameter in inner.parameters())


def test_a_foreign_classifier_guides_as_its_translation_to_ours_does(explain):
    torch.manual_seed(0)
    weight = torch.randn(8 * 8) / 8

    def ours(image):  # the same function of an image in [-1, 1], two logits
        logit = ((image.flatten(1) + 1) / 2 * 3) @ weight
        return torch.stack([torch.zeros_like(logit), logit], dim=1)

    def theirs(image):  # wants RGB in [0, 1], returns one logit in a dataclass
        return Output((image.sum(1).flatten(1) @ weight)[:, None])

    images = picture(2, 1, 8, 8)
    adapter = ClassifierAdapter(theirs, range=(0, 1), channels=3)
    torch.testing.assert_close(explain(adapter, images), explain(ours, images))


def test_a_config_builds_it_and_gives_it_to_a_method():
    small = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2], "bn_size": 2}
    config = {
        "net": {"_target_": "DenseNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 1, **small},
        "classifier": {
            "_target_": "medcf.networks.ClassifierAdapter",
            "network": "@net",
            "range": "imagenet",
            "size": [32, 32],
            "channels": 3,
        },
    }
    classifier = ConfigParser(config).get_parsed_content("classifier")
    assert classifier(picture(2, 1, 16, 20)).shape == (2, 2)
    shared = {"scheduler": RespacedDDPMScheduler(), "classifier": classifier, "target": 1, "progress": False}
    method = select_method("attack", shared=shared)
    assert method.explain(picture(1, 1, 16, 20), None).confidences.isfinite().all()


LEAST = math.log(torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize(
    ("output", "wanted"), [([[1.0, 0.0]], [0.0, LEAST]), ([[1.0]], [LEAST, 0.0]), ([[0.0]], [0.0, LEAST])]
)
def test_a_probability_of_exactly_zero_has_a_finite_logarithm_and_gradient(output, wanted):
    adapter = ClassifierAdapter(lambda image: torch.tensor(output) * image.mean(), head="probabilities")
    image = torch.ones(1, 1, 2, 2, requires_grad=True)
    logits = adapter(image)
    torch.testing.assert_close(logits, torch.tensor([wanted]))
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert gradient.isfinite().all()


def softmaxed(image):
    return Sees()(image).softmax(1)


@pytest.mark.parametrize("explained", [True, False])
@pytest.mark.parametrize(
    ("classifier", "offset", "message"),
    [(Sees(), 1.0, r"look like \[0, 1\].*ScaleIntensityRanged"), (softmaxed, 0.0, "head='probabilities'")],
)
def test_wrong_units_are_said_once_with_the_remedy(explain, explained, classifier, offset, message):
    adapter = ClassifierAdapter(classifier)
    images = (picture(2, 1, 8, 8) + offset) / (1 + offset)
    call = (lambda: explain(adapter, images)) if explained else (lambda: adapter(images))
    with pytest.warns(UserWarning, match=message):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_images_in_range_and_logits_are_not_warned_about(explain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(ClassifierAdapter(Sees()), picture(2, 1, 8, 8))
        explain(Sees(), picture(2, 1, 8, 8))
        ClassifierAdapter(softmaxed, head="probabilities")(torch.zeros(2, 1, 8, 8))
