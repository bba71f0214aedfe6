# SPDX-License-Identifier: Apache-2.0
"""A method that is no more than ``__call__(inputs, network)`` explains as every other does."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medcf.inferers import DerivedMethod, explain_with_floor, with_explain
from medcf.inferers.checks import TargetError


class Shift:
    """Makes images of class 1 by brightening, of class 0 by darkening; asks the network twice an image."""

    def __init__(self, target=1, size=0.8, seed=0):
        self.target, self.size, self.seed, self.seen = target, size, seed, []

    def __call__(self, inputs, network):
        self.seen.append(len(inputs))
        network(inputs), network(inputs)
        sign = 2 * torch.as_tensor(self.target).float().reshape(-1, 1, 1, 1) - 1
        return (inputs + sign * self.size).clamp(-1, 1)


@pytest.fixture
def images():
    levels = torch.tensor([-0.5, 0.5, -0.3]).reshape(3, 1, 1, 1)
    return MetaTensor(levels.expand(3, 1, 8, 8).clone(), meta={"name": "x"})


@pytest.fixture
def network():
    return torch.nn.Conv2d(1, 1, 1)


def judge(image):
    bright = image.flatten(1).mean(1) * 4
    return torch.stack([-bright, bright], 1)


def test_path_confidences_flips_and_evaluations_are_derived(images, network):
    method = Shift()
    result = with_explain(method, judge).explain(images, network)
    assert method.seen == [2]  # the second image is of the target class already
    assert torch.equal(result.image.as_tensor()[1], images.as_tensor()[1])
    assert isinstance(result.image, MetaTensor)
    assert torch.equal(result.trajectory[:, 0], images.as_tensor())
    assert torch.equal(result.trajectory[:, 1], result.image.as_tensor())
    for column, picture in enumerate((images, result.image)):
        torch.testing.assert_close(result.confidences[:, column], judge(picture.as_tensor()).softmax(1)[:, 1])
    assert result.flipped.tolist() == [True, False, True]
    assert result.unchanged.tolist() == [False, True, False]
    assert result.num_function_evaluations.tolist() == [2, 0, 2]
    assert result.iterations.tolist() == [1, 0, 1]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_another_target_of_a_call_reaches_the_method_and_does_not_stay(images, network):
    method = Shift()
    wrapped = DerivedMethod(method, judge)
    result = wrapped.explain(images, network, target=0)
    assert result.flipped.tolist() == [False, True, False]
    assert method.target == 1
    opposite = DerivedMethod(method, judge, "opposite").explain(images, network, target="opposite")
    assert opposite.target.tolist() == [1, 0, 1]
    assert opposite.flipped.all()


def test_a_signature_that_names_target_and_ids_is_given_them(images, network):
    seen = {}

    def method(inputs, network, target=None, sample_ids=None):
        seen.update(target=target.tolist(), ids=sample_ids)
        return inputs

    DerivedMethod(method, judge, 1).explain(images, network, ["a", "b", "c"])
    assert seen == {"target": [1, 1], "ids": ["a", "c"]}


def test_evaluations_that_nobody_can_count_are_unknown(images):
    calls = DerivedMethod(Shift(), judge).explain(images, lambda image: image).num_function_evaluations
    assert torch.isnan(calls[[0, 2]]).all()


def test_options_are_the_methods_own_and_seeds_and_floors_work(images, network):
    wrapped = DerivedMethod(Shift(), judge)
    other = wrapped.with_options(size=0.1)
    assert (wrapped.size, wrapped.method.size, other.method.size) == (0.8, 0.8, 0.1)
    found = explain_with_floor(wrapped, images.as_tensor(), network, source=0, seeds=(0, 1))
    assert (found.pred[:, 0] > images.as_tensor()[0]).all()
    assert (found.reconstruction[:, 0] < images.as_tensor()[0]).all()  # run towards its own class


@pytest.mark.parametrize("wrong", [lambda inputs, network: None, lambda inputs, network: inputs[:1, :, :4]])
def test_what_is_no_counterfactual_is_refused(images, network, wrong):
    with pytest.raises(ValueError, match="return one tensor"):
        DerivedMethod(wrong, judge, 1).explain(images, network)
    with pytest.raises(TargetError, match="has no target"):
        DerivedMethod(wrong, judge).explain(images, network)


def test_a_method_that_takes_no_target_is_not_run_toward_another_one(images, network):
    wrapped = DerivedMethod(lambda inputs, network: inputs, judge, 1)
    with pytest.raises(TargetError, match="takes no target"):
        wrapped.explain(images, network, target=0)
