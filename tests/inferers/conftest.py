# SPDX-License-Identifier: Apache-2.0
"""What the tests of the methods share: a classifier of brightness, dark images, and a maker of small inferers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.inferers import DiffICEInferer, create_method, method
from medcf.inferers.selection import method_arguments
from medcf.networks import ClassTokenUNet, Condition, Denoiser, References
from medcf.registry import METHODS
from medcf.sampling import noised
from medcf.schedulers import RespacedDDPMScheduler


class Brightness(nn.Module):
    """Class 1 is bright: logit slope * (mean of the image - middle)."""

    def __init__(self, middle=0.0, slope=5.0):
        super().__init__()
        self.middle, self.slope = middle, slope
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        logit = self.slope * (self.weight * image.flatten(1).mean(1) - self.middle)
        return torch.stack([-logit, logit], dim=1)


@pytest.fixture
def brightness():
    """The class of the classifier: ``brightness(middle, slope)``."""
    return Brightness


class Bar:
    """Stands for a progress bar; keeps every total that it was given."""

    def __init__(self, total, _title, **_options):
        self.n, self.totals = 0, []
        self.total = total

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "total":
            self.totals.append(value)

    def update(self, count):
        self.n += count


@pytest.fixture
def bars(monkeypatch):
    """The bars that methods make from now on."""
    made = []
    monkeypatch.setattr(method, "progress_bar", lambda *args, **options: made.append(Bar(*args, **options)) or made[-1])
    return made


@pytest.fixture
def images():
    """Four dark images, from nearly bright to very dark."""
    noise = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    return noise - torch.tensor([0.05, 0.2, 0.4, 0.6]).reshape(4, 1, 1, 1)


@pytest.fixture
def network(gaussian_network):
    """Faithful to any image: the wide prior of a network that denoises little."""
    return gaussian_network(0.0, 1.0)


class GaussianClasses(nn.Module):
    """The exact denoiser of Gaussian classes; keeps what it was called with. The last is the null class."""

    num_class_embeds = 3

    def __init__(self, networks):
        super().__init__()
        self.classes = nn.ModuleList(networks)
        self.calls = []

    def forward(self, sample, timesteps, class_labels):
        self.calls.append((sample, timesteps, class_labels))
        rows = [self.classes[int(y)](x[None], timesteps) for x, y in zip(sample, class_labels, strict=True)]
        return torch.cat(rows)


@pytest.fixture
def gaussian_classes(gaussian_network):
    """The denoiser of two classes and the null class: ``gaussian_classes(means, std)``."""
    return lambda means, std: GaussianClasses(gaussian_network(mean, std) for mean in means)


@pytest.fixture
def injected():
    """A denoiser of ControlCG put together by hand; ``injection`` may stand for one."""

    def build(network, scheduler, labels, scales, references, *, condition="same", generators=(), noise=None, **given):
        def at(t):
            if noise is None:
                return noised(scheduler, references, t, generators)
            a = scheduler.alpha_bar(t)
            return a**0.5 * references + (1 - a) ** 0.5 * noise

        factor = Condition(torch.tensor(labels), null=Condition(2), scale=scales)
        source = list(range(len(references))) * (len(labels) // len(references))
        reads = References(at, source, given["injection"], condition) if given.get("injection") else None
        return Denoiser(network, scheduler, factor, reads)

    return build


@pytest.fixture(scope="module")
def token_network():
    """A volume's class-token U-Net whose attention has effect."""
    torch.manual_seed(0)
    options = {"channels": (8, 8), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 4}
    net = ClassTokenUNet(3, 1, 1, cross_attention_dim=8, num_head_channels=4, attention_init=0.5, **options)
    for weight in net.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.1)
    return net.eval()


@pytest.fixture
def make():
    """Diff-ICE of 5 of 20 steps and two passes: ``make(classifier, scheduler, **options)``."""

    def build(classifier=None, scheduler=None, **options):
        defaults = {"num_inference_steps": 20, "strength": 0.25, "num_iterations": 2, "classifier_scales": (6,)}
        defaults |= {"perceptual_scale": 3.0, "progress": False, "target": 1}
        classifier = Brightness() if classifier is None else classifier
        scheduler = RespacedDDPMScheduler(1000, variance_type="fixed_large") if scheduler is None else scheduler
        return DiffICEInferer(scheduler, classifier, **(defaults | options))

    return build


@pytest.fixture
def make_method():
    """Any method of 5 of 20 steps, one pass and one scale: ``make_method(name, **options)``."""

    def build(name, **options):
        defaults = {"num_inference_steps": 20, "strength": 0.25, "num_iterations": 1, "classifier_scales": (30,)}
        defaults |= {"perceptual_scale": 0.0, "progress": False, "target": 1, "classifier": Brightness()}
        defaults |= {
            "scheduler": RespacedDDPMScheduler(1000, variance_type="fixed_large"),
            "guidance_scale": 1.0,
            "epsilon": 0.4,
            "injection_scale": 0.0,  # the network of these tests has no attention
        }
        known = build.known(name)
        return create_method(name, **({k: v for k, v in defaults.items() if k in known} | options))

    build.known = lambda name: method_arguments(METHODS[name])[0]
    return build
