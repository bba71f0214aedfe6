# SPDX-License-Identifier: Apache-2.0
"""Captions of chest states: several wordings for each, some of which no training sees.

Sides are the patient's. No caption names the heart, the age, a device or the machine.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

from medcf.phantoms.chest.states import DISEASES, LARGE, ChestState

__all__ = ["HELD_OUT", "captions", "draw_caption", "training_captions"]

# {size} is "large" or "small", {severity} "severe" or "mild", {where} a place such as "in the left lower lobe".
_TRAINING: dict[str, tuple[str, ...]] = {
    "normal": ("normal chest x-ray", "chest x-ray without findings", "healthy lungs", "no acute findings"),
    "lung_opacity": (
        "lung opacity",
        "chest x-ray with lung opacity",
        "lung opacity {where}",
        "opacity {where}",
        "{size} lung opacity {where}",
        "{size} opacity {where}",
        "chest x-ray with a {size} opacity {where}",
        "consolidation {where}",
    ),
    "covid": (
        "covid-19 pneumonia",
        "chest x-ray with covid-19",
        "covid-19 with ground glass in both lungs",
        "{severity} covid-19 pneumonia",
    ),
    "viral_pneumonia": (
        "viral pneumonia",
        "chest x-ray with viral pneumonia",
        "viral pneumonia with streaks in both lungs",
        "{severity} viral pneumonia",
    ),
}

#: Wordings that no training caption has, by disease. All their words occur in training captions.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "normal": ("lungs without opacity", "healthy chest x-ray"),
    "lung_opacity": ("x-ray with a {size} consolidation {where}", "{size} consolidation {where}"),
    "covid": ("lungs with covid-19", "chest x-ray with {severity} covid-19 in both lungs"),
    "viral_pneumonia": ("lungs with viral pneumonia", "chest x-ray with {severity} viral pneumonia in both lungs"),
}

_SEVERE = 0.675  # severity from which a pneumonia is called severe: the middle of those that are drawn


def captions(state: ChestState, split: str = "train", *, held_out: bool | None = None) -> list[str]:
    """List the captions that describe a state; all are true of it, some leave details out.

    Args:
        state: the state.
        split: "train", "val" or "oracle" for the training's wordings; any other, such as "test" or "demo", for the
            training's and the held-out ones.
        held_out: True for only the wordings in ``HELD_OUT``, False for only the others; None decides by the split.

    Returns:
        Lower-case texts without repetition.

    Example:
        >>> captions(ChestState(), held_out=True)
        ['lungs without opacity', 'healthy chest x-ray']
    """
    if held_out is None:
        kept = split in ("train", "val", "oracle")
        wordings = _TRAINING[state.disease] + (() if kept else HELD_OUT[state.disease])
    else:
        wordings = HELD_OUT[state.disease] if held_out else _TRAINING[state.disease]
    words = {
        "size": "large" if state.extent >= LARGE else "small",
        "severity": "severe" if state.severity >= _SEVERE else "mild",
    }
    places = _places(state)
    texts = [wording.format(where=place, **words) for wording in wordings for place in places]
    return list(dict.fromkeys(texts))


def draw_caption(state: ChestState, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """Draw a wording for a state, each with the same probability, then one of its places.

    Args:
        state: the state.
        rng: source of randomness.
        held_out: whether to draw from ``HELD_OUT`` instead of the training's wordings.

    Returns:
        A caption, as `captions` lists them.
    """
    wordings = HELD_OUT[state.disease] if held_out else _TRAINING[state.disease]
    wording = wordings[int(rng.integers(len(wordings)))]
    places = _places(state)
    words = {
        "where": places[int(rng.integers(len(places)))],
        "size": "large" if state.extent >= LARGE else "small",
        "severity": "severe" if state.severity >= _SEVERE else "mild",
    }
    return wording.format(**words)


@lru_cache(maxsize=1)
def training_captions() -> tuple[str, ...]:
    """Return every caption that a training can see, sorted: the text from which a vocabulary is built."""
    texts: set[str] = set()
    for extent, severity in product((0.0, 1.0), repeat=2):
        for disease in DISEASES:
            if disease != "lung_opacity":
                texts.update(captions(ChestState(disease, extent=extent, severity=severity)))
        for side, lobe in product(("left", "right", "both"), ("upper", "lower", None)):
            state = ChestState("lung_opacity", side, lobe, extent, severity)  # type: ignore[arg-type]
            texts.update(captions(state))
    return tuple(sorted(texts))


def _places(state: ChestState) -> tuple[str, ...]:
    """Where an opacity is, from exact to rough; a lobe is never named without its side."""
    if state.disease != "lung_opacity":
        return ("",)
    if state.side == "both":
        rough = ("on both sides", "in both lungs")
        return rough if state.lobe is None else (f"in both {state.lobe} lobes", *rough)
    rough = (f"on the {state.side}", f"in the {state.side} lung")
    return rough if state.lobe is None else (f"in the {state.side} {state.lobe} lobe", *rough)
