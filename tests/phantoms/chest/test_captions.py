# SPDX-License-Identifier: Apache-2.0
"""Captions say what is true of a state; held-out wordings are new sentences of known words."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from medcf.phantoms import HELD_OUT, ChestState, captions, draw_caption, training_captions

STATES = [
    ChestState(),
    *(
        ChestState(name, extent=e, severity=s)
        for name, e, s in product(("covid", "viral_pneumonia"), (0.2, 0.9), (0.4, 0.9))
    ),  # type: ignore[arg-type]
    *(
        ChestState("lung_opacity", side, lobe, extent)  # type: ignore[arg-type]
        for side, lobe, extent in product(("left", "right", "both"), ("upper", "lower", None), (0.2, 0.9))
    ),
]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_captions_are_true(state: ChestState) -> None:
    for text in captions(state, "test"):
        words = text.split()
        assert ("covid-19" in words) == (state.disease == "covid")
        assert ("viral" in words) == (state.disease == "viral_pneumonia")
        if state.disease == "lung_opacity":
            assert ("opacity" in words) or ("consolidation" in words)
            assert not ("left" in words and state.side != "left")
            assert not ("right" in words and state.side != "right")
            assert not ({"upper", "lower"} & set(words) - {state.lobe})
            assert not ("large" in words and state.extent < 0.5)
            assert not ("small" in words and state.extent >= 0.5)
        else:
            assert not {"left", "right", "upper", "lower", "consolidation"} & set(words)
        assert not ("severe" in words and state.severity < 0.6)
        assert not ("mild" in words and state.severity > 0.7)


def test_different_findings_have_no_caption_in_common() -> None:
    texts = {state: set(captions(state, "test")) for state in (STATES[0], STATES[1], STATES[5], STATES[9])}
    for first, second in product(texts, repeat=2):
        assert first == second or not texts[first] & texts[second]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_every_state_has_several_wordings_and_some_that_are_held_out(state: ChestState) -> None:
    known, new = captions(state, "train"), captions(state, held_out=True)
    assert len(known) >= 4
    assert len(new) >= 2
    assert not set(new) & set(training_captions())
    assert set(known) <= set(training_captions())
    assert captions(state, "test") == list(dict.fromkeys(known + new))


def test_held_out_wordings_have_only_words_of_the_training() -> None:
    vocabulary = {word for text in training_captions() for word in text.split()}
    for state in STATES:
        for text in captions(state, held_out=True):
            assert set(text.split()) <= vocabulary, text
    assert set(HELD_OUT) == {"normal", "lung_opacity", "covid", "viral_pneumonia"}


def test_no_caption_names_the_heart_the_age_or_a_device() -> None:
    texts = [*training_captions(), *(text for state in STATES for text in captions(state, held_out=True))]
    hidden = ("heart", "cardio", "child", "adult", "age", "pacemaker", "wire", "device")
    for text in texts:
        assert text == text.lower()
        assert not [word for word in text.split() for part in hidden if word.startswith(part)]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_drawn_caption_is_one_of_the_states(held_out: bool) -> None:
    rng = np.random.default_rng(0)
    for state in STATES:
        drawn = {draw_caption(state, rng, held_out=held_out) for _ in range(200)}
        assert drawn == set(captions(state, held_out=held_out))


def test_wordings_are_drawn_alike_whatever_details_they_have() -> None:
    state, rng = ChestState("lung_opacity", "left", "upper"), np.random.default_rng(1)
    drawn = [draw_caption(state, rng) for _ in range(800)]
    bare = sum(text in ("lung opacity", "chest x-ray with lung opacity") for text in drawn) / len(drawn)
    assert bare == pytest.approx(0.25, abs=0.05)
