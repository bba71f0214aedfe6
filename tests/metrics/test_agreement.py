# SPDX-License-Identifier: Apache-2.0
"""An independent judge's word on the flips, and on the inputs beside it."""

from __future__ import annotations

import math

import pytest
import torch

from medcf.metrics.agreement import OracleAgreement

NSP, SP = [3.0, 0.0], [0.0, 3.0]


def decide(*names: list[float]) -> torch.Tensor:
    return torch.tensor(names)


def test_only_flips_are_judged() -> None:
    metric = OracleAgreement()
    metric(
        decide(SP, NSP, SP, SP),
        decide(NSP, NSP, NSP, NSP),
        logits=decide(SP, SP, NSP, SP),
        input_logits=decide(NSP, NSP, NSP, SP),
    )
    assert metric.aggregate() == 0.5
    assert metric.left_out_cases() == {
        "the input is already of the target class": [3],
        "the counterfactual did not reach the target class": [2],
    }


def test_a_judge_that_calls_everything_the_target_is_seen_by_the_reference() -> None:
    metric = OracleAgreement()
    metric(decide(SP, SP), decide(SP, SP), logits=decide(SP, SP), input_logits=decide(NSP, NSP))
    assert (metric.aggregate(), metric.reference().mean) == (1, 1)


def test_the_reference_is_about_the_same_cases_as_the_share() -> None:
    metric = OracleAgreement()
    metric(
        decide(SP, SP, NSP, SP),
        decide(NSP, SP, SP, SP),
        logits=decide(SP, SP, NSP, SP),
        input_logits=decide(NSP, NSP, NSP, SP),
    )
    assert (metric.reference().mean, metric.reference().count) == (0.5, 2)  # two flips, one input called target
    for _ in range(4):
        metric(
            decide(SP, SP, NSP, SP),
            decide(NSP, SP, SP, SP),
            logits=decide(SP, SP, NSP, SP),
            input_logits=decide(NSP, NSP, NSP, SP),
        )
    subjects = [name for batch in range(5) for name in (f"a{batch}", f"a{batch}", f"b{batch}", f"c{batch}")]
    assert metric.reference(groups=subjects).interval == (0.5, 0.5)  # half of the flips of every subject


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_quality_that_reaches_the_threshold_is_a_yes(shape: tuple[int, ...]) -> None:
    after = torch.tensor([0.75, 0.74, math.nan, 1.0]).view(shape)
    metric = OracleAgreement(threshold=0.75)
    metric(after, torch.zeros(shape), logits=decide(SP, SP, SP, SP), input_logits=decide(NSP, NSP, NSP, NSP))
    assert metric.per_case().tolist() == [1, 0, 0, 1]
    assert metric.reference().mean == 0


@pytest.mark.parametrize(
    ("options", "judged", "keywords", "message"),
    [
        ({}, decide(SP), {}, "needs logits and input_logits"),
        ({}, torch.rand(1), {"logits": decide(SP), "input_logits": decide(NSP)}, "needs a threshold"),
        ({"threshold": 0.5}, decide(SP), {"logits": decide(SP), "input_logits": decide(NSP)}, "for a quality"),
        (
            {},
            decide(SP, SP),
            {"logits": decide(SP), "input_logits": decide(NSP)},
            "on 2 cases, but the classifier on 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, float], judged: torch.Tensor, keywords: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OracleAgreement(**options)(judged, judged, **keywords)
