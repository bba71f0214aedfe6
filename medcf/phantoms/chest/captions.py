# SPDX-License-Identifier: Apache-2.0
"""What a report would say of a chest: several wordings for each state, some of them kept out of training.

Sides are the patient's. No caption names the heart's size, the age, the machine or a device.
"""

from __future__ import annotations

from itertools import product
from string import Formatter

import numpy as np

from medcf.phantoms.chest.states import LARGE, ChestState, Disease

__all__ = ["HELD_OUT", "WORDINGS", "captions", "draw_caption", "training_captions"]

#: Severity from which a diffuse disease is called severe.
SEVERE = 0.65

_OPACITY = (
    "lung opacity",
    "{size} lung opacity",
    "lung opacity {on_side}",
    "{size} lung opacity {on_side}",
    "chest x-ray with {size} opacity in the {lung}",
    "opacity in the {lung}",
    "{size} opacity in the {lobe} lobe {on_side}",
    "{lobe} lobe opacity {on_side}",
    "{size} opacity in the {lung}, {lobe} lobe",
    "chest radiograph: {size} lung opacity {on_side}, {lobe} lobe",
)

#: Training wordings by disease; the words in braces are filled in from the state.
WORDINGS: dict[Disease, tuple[str, ...]] = {
    "normal": (
        "normal chest x-ray",
        "normal chest radiograph",
        "chest x-ray without findings",
        "clear lungs, no opacity",
        "no pneumonia",
    ),
    "lung_opacity": _OPACITY,
    "covid": (
        "covid-19",
        "covid-19 pneumonia",
        "chest x-ray with covid-19",
        "{grade} covid-19 pneumonia",
        "{grade} covid-19 in both lungs",
        "chest radiograph: covid-19 on both sides",
    ),
    "viral_pneumonia": (
        "viral pneumonia",
        "chest x-ray with viral pneumonia",
        "viral pneumonia in both lungs",
        "{grade} viral pneumonia",
        "chest radiograph: {grade} viral pneumonia",
    ),
}

#: Wordings that no training sees; all their words occur in those above.
HELD_OUT: dict[Disease, tuple[str, ...]] = {
    "normal": ("chest radiograph with clear lungs", "x-ray without pneumonia"),
    "lung_opacity": ("{lung} with {size} opacity", "chest radiograph with {lobe} lobe opacity in the {lung}"),
    "covid": ("chest radiograph with covid-19 pneumonia", "both lungs with {grade} covid-19"),
    "viral_pneumonia": ("chest radiograph with viral pneumonia", "both lungs with {grade} viral pneumonia"),
}

_SIDES = {
    "left": {"on_side": "on the left", "lung": "left lung"},
    "right": {"on_side": "on the right", "lung": "right lung"},
    "both": {"on_side": "on both sides", "lung": "both lungs"},
}


def captions(state: ChestState, *, held_out: bool = False) -> list[str]:
    """Return all wordings that are true of a state.

    Args:
        state: the disease, where and how large.
        held_out: the wordings that no training sees, instead of those for training.
    """
    words = {
        "size": "large" if state.extent >= LARGE else "small",
        "grade": "severe" if state.severity >= SEVERE else "mild",
        **({} if state.side is None else _SIDES[state.side]),
        **({} if state.lobe is None else {"lobe": state.lobe}),
    }
    wordings = (HELD_OUT if held_out else WORDINGS)[state.disease]
    return [one.format(**words) for one in wordings if _slots(one) <= set(words)]


def draw_caption(state: ChestState, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """Draw one of the wordings of a state, each as often."""
    wordings = captions(state, held_out=held_out)
    return wordings[int(rng.integers(len(wordings)))]


def training_captions() -> list[str]:
    """Return every caption that a training can contain, sorted: what a tokenizer is made from."""
    found = {text for disease in WORDINGS if disease != "lung_opacity" for text in _of(disease)}
    for side, lobe in product(_SIDES, ("upper", "lower", None)):
        found |= {text for text in _of("lung_opacity", side=side, lobe=lobe)}
    return sorted(found)


def _of(disease: Disease, **place: str | None) -> list[str]:
    states = (ChestState(disease, **place, extent=n, severity=n) for n in (0.0, 1.0))  # type: ignore[arg-type]
    return [text for state in states for text in captions(state)]


def _slots(wording: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(wording) if name}
