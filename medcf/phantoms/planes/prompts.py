# SPDX-License-Identifier: Apache-2.0
"""Prompts for planes: several wordings for each class, with or without the site; some of them no training sees."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from medcf.phantoms.planes.sites import SITES
from medcf.phantoms.planes.states import PLANE_NAMES

__all__ = ["HELD_OUT_PROMPTS", "draw_plane_prompt", "plane_prompts", "training_plane_prompts"]

_TRAINING: dict[str, tuple[str, ...]] = {
    "abdomen": (
        "a photo of fetal abdomen",
        "ultrasound of the fetal abdomen",
        "fetal abdomen with stomach and umbilical vein",
        "abdominal circumference plane",
    ),
    "brain": (
        "a photo of fetal brain",
        "ultrasound of the fetal brain",
        "fetal head with skull and midline",
        "head circumference plane",
    ),
    "femur": (
        "a photo of fetal femur",
        "ultrasound of the fetal femur",
        "fetal thigh with a bright femur",
        "femur length plane",
    ),
    "thorax": (
        "a photo of fetal thorax",
        "ultrasound of the fetal thorax",
        "fetal heart with four chambers",
        "four chamber plane",
    ),
    "cervix": (
        "a photo of maternal cervix",
        "ultrasound of the maternal cervix",
        "maternal cervix with canal",
        "cervical length plane",
    ),
    "other": ("a photo of other fetal plane", "ultrasound of another plane", "other plane", "no standard plane"),
}

#: Wordings that no training prompt has, by class. All their words occur in training prompts.
HELD_OUT_PROMPTS: dict[str, tuple[str, ...]] = {
    "abdomen": ("plane of the fetal abdomen", "ultrasound of the stomach and umbilical vein"),
    "brain": ("plane of the fetal brain", "ultrasound of the fetal head with midline"),
    "femur": ("plane of the fetal femur", "ultrasound of the fetal thigh"),
    "thorax": ("plane of the fetal thorax", "ultrasound of the four chamber heart"),
    "cervix": ("plane of the maternal cervix", "ultrasound of the cervical canal"),
    "other": ("ultrasound of no standard plane", "a photo of another plane"),
}

_AT = ", site {site}"


def plane_prompts(label: int, site: str | None = None, *, held_out: bool = False) -> list[str]:
    """List the prompts of a class.

    Args:
        label: index in ``PLANE_NAMES``.
        site: "A" or "B" to name it; None leaves it open.
        held_out: True for the wordings in ``HELD_OUT_PROMPTS``, False for the training's.

    Returns:
        Lower-case texts.

    Raises:
        ValueError: if the label or the site does not exist.

    Example:
        >>> plane_prompts(2, "B")[0]
        'a photo of fetal femur, site b'
    """
    if label not in range(len(PLANE_NAMES)):
        raise ValueError(f"label={label!r}: choose 0 to {len(PLANE_NAMES) - 1}.")
    if site is not None and site not in SITES:
        raise ValueError(f"site {site!r} is unknown; choose one of {', '.join(SITES)}")
    wordings = (HELD_OUT_PROMPTS if held_out else _TRAINING)[PLANE_NAMES[label]]
    return [wording + ("" if site is None else _AT.format(site=site.lower())) for wording in wordings]


def draw_plane_prompt(label: int, site: str | None, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """Draw one of `plane_prompts`, each with the same probability."""
    prompts = plane_prompts(label, site, held_out=held_out)
    return prompts[int(rng.integers(len(prompts)))]


@lru_cache(maxsize=1)
def training_plane_prompts() -> tuple[str, ...]:
    """Return every prompt that a training can see, sorted: the text from which a vocabulary is built."""
    labels, sites = range(len(PLANE_NAMES)), (None, *SITES)
    return tuple(sorted({text for label in labels for site in sites for text in plane_prompts(label, site)}))
