# SPDX-License-Identifier: Apache-2.0
"""Diff-ICE: against the method written out, and its own options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.guidance import PerceptualFeatures
from medcf.sampling import make_generators
from medcf.schedulers import RespacedDDPMScheduler

IDS = ["a", "b", "c", "d"]
TABLE = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000).double(), 0).tolist()


def written_out(network, classifier, phi, original, start, ids, number, scale, *, gradient="x0", steps=20, count=5):
    """One pass of Diff-ICE: eq. 1 to 3 with the gradient by autograd, ancestral steps with the large variance."""
    kept = [round(i * 999 / (steps - 1)) for i in range(count + 1)]
    generators = make_generators(0, ids, stream=("pass", number))
    inner = make_generators(0, ids, stream=("inner", number))

    def noise(sources):
        return torch.stack([torch.randn(original.shape[1:], generator=generator) for generator in sources])

    def predict(x, i):
        a = TABLE[kept[i]]
        epsilon = network(x, timesteps=torch.full((len(x),), kept[i]))
        return ((x - (1 - a) ** 0.5 * epsilon) / a**0.5).clamp(-1, 1)

    def moments(x, clean, i):
        a, p = TABLE[kept[i]], TABLE[kept[i - 1]] if i else 1.0
        beta = 1 - a / p
        mean = p**0.5 * beta / (1 - a) * clean + (a / p) ** 0.5 * (1 - p) / (1 - a) * x
        if i:
            return mean, beta
        return mean, (1 - TABLE[kept[1]] / a) * (1 - a) / (1 - TABLE[kept[1]])

    def loss_gradient(function, point):
        point = point.detach().requires_grad_()
        image = function(point)
        difference = (phi(image) - phi(original)).pow(2).flatten(1).mean(1)
        loss = scale * -classifier(image).log_softmax(1)[:, 1] + 3.0 * difference
        return torch.autograd.grad(loss.sum(), point)[0]

    a = TABLE[kept[count - 1]]
    x = a**0.5 * start + (1 - a) ** 0.5 * noise(generators)
    for i in reversed(range(count)):
        clean = predict(x, i).detach()
        mean, variance = moments(x, clean, i)
        if gradient == "x0":
            g = loss_gradient(lambda point: point, clean)
        elif gradient == "xt":
            g = loss_gradient(lambda point, i=i: predict(point, i), x)
        else:
            y = mean + (variance**0.5 * noise(inner) if i else 0)
            for j in reversed(range(i)):
                m, s = moments(y, predict(y, j), j)
                y = m + (s**0.5 * noise(inner) if j else 0)
            g = loss_gradient(lambda point: point, y) / TABLE[kept[i]] ** 0.5
        x = (mean - variance * g + (variance**0.5 * noise(generators) if i else 0)).detach()
    return x.clamp(-1, 1)


@pytest.mark.parametrize(("gradient", "forwards"), [("x0", 5), ("xt", 5), ("dime", 15)])
def test_two_passes_are_the_method_written_out(make, brightness, tiny_unet, images, gradient, forwards):
    unet, classifier, extractor = tiny_unet(), brightness(slope=2.0), nn.Conv2d(1, 4, 3)
    inferer = make(classifier, perceptual=PerceptualFeatures(extractor), gradient=gradient, classifier_scales=(40,))
    result = inferer.explain(images, unet, IDS)
    start = images
    for number in range(2):
        start = written_out(unet, classifier, extractor, images, start, IDS, number, 40.0, gradient=gradient)
        torch.testing.assert_close(result.trajectory[:, number + 1], start, rtol=0, atol=2e-4)
    assert result.num_function_evaluations.tolist() == [2 * forwards] * 4
    assert result.total_function_evaluations == 8 * forwards
    torch.testing.assert_close(result.image, result.trajectory[:, -1])
    torch.testing.assert_close(result.trajectory[:, 0], images)
    wanted = torch.stack([classifier(result.trajectory[:, i]).softmax(1)[:, 1] for i in range(3)], dim=1)
    torch.testing.assert_close(result.confidences, wanted.detach())


def test_gradient_of_the_previous_step_is_another_method(make, network, images):
    current, previous = make()(images, network), make(gradient_step="previous")(images, network)
    assert 1e-3 < (current - previous).abs().max() < 0.5


def test_starts_of_the_paper_and_of_the_code_differ_by_one_kept_step(make, network, images):
    paper, code = make(), make(start_variant="published_code")
    kept = [round(i * 999 / 19) for i in range(20)]
    assert paper.timesteps == code.timesteps == kept[4::-1]
    assert (paper.schedule(0)[1], code.schedule(0)[1]) == (kept[4], kept[5])
    scheduler = RespacedDDPMScheduler(1000)
    assert make(scheduler=scheduler, num_inference_steps=400, strength=0.3).schedule(0)[1] == 298
    assert len(make(scheduler=scheduler, num_inference_steps=400, strength=0.3).timesteps) == 120


def test_every_pass_draws_new_noise(make, network, images):
    result = make(classifier_scales=0, perceptual_scale=0.0).explain(images, network, IDS)
    first, second = result.trajectory.diff(dim=1).flatten(2).unbind(1)
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] < 0


@pytest.mark.parametrize("gradient", ["x0", "xt", "dime"])
def test_gradients_survive_no_grad_but_not_inference_mode(make, network, images, gradient):
    inferer = make(gradient=gradient)
    wanted = inferer(images, network)
    with torch.no_grad():
        torch.testing.assert_close(inferer(images, network), wanted)
    assert not wanted.requires_grad
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        inferer(images, network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"classifier_scales": ()}, "classifier_scales"),
        ({"classifier_scales": (-1.0,)}, "classifier_scales"),
        ({"confidence_threshold": 1.5}, "confidence_threshold"),
        ({"gradient": "x1"}, "'x0', 'xt', 'dime'"),
        ({"class_loss": "hinge"}, "class_loss"),
        ({"start_variant": "late"}, "'exact', 'published_code'"),
        ({"gradient": "xt", "gradient_step": "previous"}, "gradient='x0'"),
    ],
)
def test_wrong_options_are_refused_with_their_name(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
