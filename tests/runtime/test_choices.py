# SPDX-License-Identifier: Apache-2.0
"""Options are checked by the names and types of a dataclass's fields, before anything computes with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from medcf.runtime.choices import check_fields, check_names, did_you_mean, numbers


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int = 1
    share: float | None = None
    shares: float | Sequence[float] = 0.5
    on: bool = False
    word: Literal["one", "published_code"] | None = None
    label: int | Literal["all"] = 0
    call: Callable[[int], int] | None = None


@pytest.mark.parametrize(
    "given",
    [
        {"count": np.int64(3)},
        {"share": 1, "shares": [0.1, 2]},
        {"shares": np.array([0.1, 0.2]), "on": True},
        {"word": "one", "label": "all"},
        {"call": "anything else is not checked"},
    ],
)
def test_values_of_a_field_s_type_pass(given: dict[str, Any]) -> None:
    check_fields(Example(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 1.5}, "count=1.5 is not a whole number"),
        ({"count": True}, "count=True is not a number"),
        ({"count": None}, "count=None is not a number"),
        ({"share": "0.5"}, "share='0.5' is not a number"),
        ({"shares": [0.1, "big"]}, "shares='big' is not a number"),
        ({"on": "false"}, "on='false' is not a truth value"),
        ({"word": "two"}, "word='two' is unknown: use one of 'one', 'published_code'"),
        ({"word": "code"}, "word='code' was renamed: use 'published_code'"),
        ({"label": "some"}, "label='some' is not a whole number"),
    ],
)
def test_other_values_are_refused_by_the_field_s_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_fields(Example(**given))


def test_the_first_unknown_name_is_refused_with_the_closest_and_all_known_ones() -> None:
    check_names(["seed"], {"seed", "region"}, "It lacks")
    with pytest.raises(ValueError, match=r"^It lacks 'sead'\. Did you mean 'seed'\? There are: region, seed\.$"):
        check_names(["seed", "sead", "x"], {"seed", "region"}, "It lacks")
    with pytest.raises(ValueError, match=r"^It lacks 'x'\. There are: region, seed\.$"):
        check_names(["x"], {"seed", "region"}, "It lacks")
    assert did_you_mean("sead", ["seed"], "--{}") == " Did you mean --seed?"


def test_one_number_and_several_become_a_tuple() -> None:
    assert numbers(0.5) == numbers(np.array(0.5)) == (0.5,)
    assert numbers([1, 2]) == numbers(range(1, 3)) == (1, 2)
