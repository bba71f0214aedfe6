# SPDX-License-Identifier: Apache-2.0
"""Prompts become conditions: a class's own, one for all in its place, and one that describes the inputs."""

from __future__ import annotations

import pytest
import torch

from medcf.networks import Conditioner, prompt_conditioner


class Letters:
    """Embeds a prompt as its first two letters' codes; remembers how often it was asked."""

    calls = 0

    def embed(self, prompts):
        self.calls += 1
        return torch.stack([torch.tensor([[float(ord((text + "  ")[i]))] for i in range(2)]) for text in prompts])


def texts(context):
    return ["".join(chr(int(one)) for one in row[:, 0]) for row in context]


def test_a_class_selects_its_prompt_and_the_null_is_the_empty_one():
    (factor,) = prompt_conditioner(Letters(), ["normal", "sick"])(torch.tensor([1, 0, 1]), 3.0)
    assert texts(factor.context) == ["si", "no", "si"]
    assert texts(factor.null.context) == ["  "]
    assert factor.labels is None
    assert factor.scale == 3.0


def test_one_s_own_prompt_takes_the_place_of_every_target_s_and_not_of_the_inputs():
    conditioner = prompt_conditioner(Letters(), ["normal", "sick"], "large", "old")
    rows, own = torch.tensor([1, 0, 1]), torch.tensor([False, False, True])
    assert texts(conditioner(rows)[0].context) == ["la", "la", "la"]
    assert texts(conditioner(rows, own=own)[0].context) == ["la", "la", "ol"]
    without = prompt_conditioner(Letters(), ["normal", "sick"], "large")
    assert texts(without(rows, own=own)[0].context) == ["la", "la", "si"]


def test_a_class_without_a_prompt_matters_only_where_its_prompt_is_read():
    conditioner = prompt_conditioner(Letters(), ["normal"], "large")
    assert texts(conditioner(torch.tensor([4]))[0].context) == ["la"]
    with pytest.raises(ValueError, match="Class 4 has no prompt: contexts holds 1"):
        conditioner(torch.tensor([0, 4]), own=torch.tensor([False, True]))


@pytest.mark.parametrize("prompts", [[], "normal"])
def test_without_a_list_of_prompts_nothing_is_made(prompts):
    with pytest.raises(ValueError, match="give a list, one prompt for each class"):
        prompt_conditioner(Letters(), prompts)


def test_what_is_not_text_is_refused():
    with pytest.raises(ValueError, match="7 is not a prompt: give text"):
        prompt_conditioner(Letters(), ["normal", "sick"], 7)


def test_prompts_that_cannot_share_a_call_are_refused():
    contexts = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"contexts and prompt have shapes \(2, 3, 4\) and \(2, 3, 4\)"):
        Conditioner(contexts=contexts, prompt=contexts)
    with pytest.raises(ValueError, match="give contexts, one prompt per class"):
        Conditioner(2, prompt=contexts[:1])
