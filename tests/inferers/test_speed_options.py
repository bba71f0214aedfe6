# SPDX-License-Identifier: Apache-2.0
"""What makes methods faster changes their results not at all, or as it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medcf.guidance import LossTerms, X0Gradient, XtGradient

IDS = ["a", "b", "c", "d"]
GUIDED = ["diffice", "dime", "fastdime", "universal"]


@pytest.mark.parametrize("name", GUIDED)
def test_batched_scales_give_the_result_of_the_search(make_method, network, images, name):
    options = {"classifier_scales": (1, 6, 30), "num_iterations": 2, "confidence_threshold": 0.9}
    options |= {"perceptual": nn.Identity(), "perceptual_scale": 3.0}
    one_by_one = make_method(name, **options).explain(images, network, IDS)
    stacked = make_method(name, batched_scales=True, **options).explain(images, network, IDS)
    assert len(set(one_by_one.scales.nan_to_num().flatten().tolist())) > 1
    torch.testing.assert_close(stacked.trajectory, one_by_one.trajectory, rtol=0, atol=1e-5)
    torch.testing.assert_close(stacked.scales, one_by_one.scales, equal_nan=True)
    torch.testing.assert_close(stacked.confidences, one_by_one.confidences, rtol=0, atol=1e-5)
    assert torch.equal(stacked.flipped, one_by_one.flipped)
    a_chain = 15 if name == "dime" else 5
    assert stacked.num_function_evaluations.tolist() == (3 * a_chain * stacked.iterations).tolist()


def test_batched_scales_keep_the_most_confident_result_when_none_flips(make_method, network, images, brightness):
    options = {"classifier": brightness(middle=3.0, slope=1.0), "classifier_scales": (0, 100, 10)}
    one_by_one = make_method("diffice", **options).explain(images, network, IDS)
    stacked = make_method("diffice", batched_scales=True, **options).explain(images, network, IDS)
    assert not stacked.flipped.any()
    assert stacked.scale.tolist() == one_by_one.scale.tolist() == [100.0] * 4
    torch.testing.assert_close(stacked.image, one_by_one.image, rtol=0, atol=1e-5)


def test_batched_scales_call_the_network_once_a_step(make_method, network, images):
    calls = []
    network.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    make_method("diffice", classifier_scales=(0, 1, 2), batched_scales=True).explain(images, network, IDS)
    assert calls == [12] * 5


def test_features_of_the_originals_are_computed_once_for_all_passes_and_scales(make_method, network, images):
    seen = []

    def features(image):
        seen.append((len(image), image.requires_grad))
        return image

    options = {"classifier_scales": (0, 0.1), "num_iterations": 3, "perceptual_scale": 1.0}
    make_method("diffice", perceptual=features, **options).explain(images, network, IDS)
    assert len(seen) == 1 + 3 * 2 * 5  # and one a step where the gradient needs it
    assert [needs for _, needs in seen] == [False] + [True] * 30
    seen.clear()
    make_method("diffice", perceptual=features, target=0).explain(images, network, IDS)
    assert seen == []  # nothing to explain


@pytest.mark.parametrize("name", GUIDED)
def test_gradient_may_be_taken_at_every_second_step(make_method, tiny_unet, images, name, brightness):
    unet, counts, results = tiny_unet(), {}, {}
    own = {"mask": False} if name == "fastdime" else {}
    for every in (1, 2, 9):
        classifier, calls = brightness(), []
        classifier.register_forward_hook(lambda _m, inputs, _o, calls=calls: calls.append(inputs[0].requires_grad))
        method = make_method(name, classifier=classifier, guide_every=every, **own)
        results[every] = method.explain(images, unet, IDS)
        counts[every] = sum(calls)
    assert counts == {1: 5, 2: 3, 9: 1}
    assert torch.equal(results[1].image, make_method(name, **own).explain(images, unet, IDS).image)
    assert (results[2].image - results[1].image).abs().max() > 1e-4
    if name == "dime":  # inner chains are left out as well
        assert results[2].num_function_evaluations.tolist() == [5 + 4 + 2] * 4


@pytest.mark.parametrize("estimator", [X0Gradient, XtGradient])
def test_held_gradient_is_the_last_one_taken(estimator):
    class Step:
        def __init__(self, sample):
            self.sample = self.pred_original = sample

    def loss(image):
        value = image.pow(2).flatten(1).sum(1)
        return LossTerms(value.sum(), value, value * 0, value[:, None])

    hook = estimator(loss, every=3)
    points = [torch.full((1, 1, 2, 2), float(i), requires_grad=True) for i in range(1, 8)]
    taken = [float(hook.current(Step(point)).mean()) for point in points]
    assert taken == [2, 2, 2, 8, 8, 8, 14]
    with pytest.raises(ValueError, match="every=0"):
        estimator(loss, every=0)


def test_network_records_no_graph_where_the_gradient_is_held(make_method, tiny_unet, images):
    unet, graphs = tiny_unet(), []
    unet.register_forward_hook(lambda _module, _inputs, output: graphs.append(output.requires_grad))
    make_method("universal", guide_every=2).explain(images, unet, IDS)
    assert graphs == [True, False, True, False, True]


def test_strength_may_be_given_per_pass(make_method, network, images):
    falling = make_method("diffice", strength=(0.25, 0.1), num_iterations=3)
    result = falling.explain(images, network, IDS)
    assert result.num_function_evaluations.tolist() == [5 + 2 + 2] * 4
    whole = make_method("diffice", num_iterations=3).explain(images, network, IDS)
    assert torch.equal(result.trajectory[:, 1], whole.trajectory[:, 1])
    assert len(falling.timesteps) == 5
    with pytest.raises(ValueError, match="strength"):
        make_method("diffice", strength=(0.25, 0.0))
    with pytest.raises(ValueError, match="strength"):
        make_method("diffice", strength=())


def test_bar_of_unequal_passes_counts_their_steps(make_method, network, images, bars):
    make_method("diffice", strength=(0.25, 0.1), num_iterations=2).explain(images, network, IDS)
    assert (bars[0].totals, bars[0].n) == ([7, 7], 7)


def test_a_gradient_must_be_taken_at_least_once(make_method):
    with pytest.raises(ValueError, match="guide_every=0"):
        make_method("diffice", guide_every=0)
