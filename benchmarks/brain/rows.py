# SPDX-License-Identifier: Apache-2.0
"""Methods and settings compared on brains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.counterfactual.rows import Row, expected, toward_own_class

__all__ = ["GUIDANCE", "METHODS", "PAPER", "PLAIN", "STUDIES", "controlcg", "guidance"]


def controlcg(name: str, label: str, *, w: float | None = None, **options: Any) -> Row:
    """Make a row of ControlCG with some of its options changed.

    Args:
        name: of the row.
        label: how it reads.
        w: the paper's guidance scale, one less than ``guidance_scale``; None takes the bundle's.
        options: of the method.
    """
    ids = {f"method_options#controlcg#{key}": value for key, value in options.items()}
    scale = {} if w is None else {"guidance_scale": 1 + w}
    return Row(name, label, {"method": "controlcg", **ids, **scale})


def _ilvr(factor: int, stop: int, label: str = "", **options: Any) -> Row:
    options = {"downsample_factor": factor, "stop_timestep": stop, **options}
    ids = {f"method_options#ilvr#{key}": value for key, value in options.items()}
    name = f"ilvr_{factor}_{stop}" + ("_subtracted" if label else "")
    return Row(name, f"ILVR, n = {factor}, T = {stop}{label}", {"method": "ilvr", **ids})


def _inversion(depth: float, w: float = 3.0) -> Row:
    options = {"method_options#ddim_inversion#depth": depth, "num_inference_steps": 50}  # fewer come back elsewhere
    label = f"DDIM inversion, {1000 * depth:g} of 1000, w = {w:g}"
    name = f"ddim_inversion_{1000 * depth:g}_w_{w:g}"
    return Row(name, label, {"method": "ddim_inversion", "guidance_scale": 1 + w, **options})


def _exact(name: str, label: str, strength: float, w: float) -> Row:
    options = {f"method_options#{name}#strength": strength, "guidance_scale": 1 + w}
    return Row(f"{name}_{100 * strength:g}_w_{w:g}", f"{label}, {strength:g}, w = {w:g}", {"method": name, **options})


#: Options with which what is generated is the result, and those of the paper.
PLAIN: dict[str, Any] = {"subtract_reconstruction": False}
PAPER: dict[str, Any] = {"strength": 1.0, "reference_condition": "same", **PLAIN}

#: The default and its parts, other strengths, the paper's setting, and the paper's baselines.
COMPARED = (
    controlcg("controlcg", "ControlCG, the bundle's default (strength 0.6, w = 3)"),
    controlcg("controlcg_off", "default, injection off", injection_scale=0.0),
    controlcg("same_reference", "default, reference of the target class", reference_condition="same"),
    controlcg("plain", "default, reconstruction not subtracted", **PLAIN),
    controlcg("strength_40", "strength 0.4, w = 8, not subtracted", w=8.0, strength=0.4, **PLAIN),
    controlcg("strength_80", "strength 0.8, w = 2", w=2.0, strength=0.8),
    controlcg("strength_100", "strength 1.0, w = 2", w=2.0, strength=1.0),
    controlcg("paper", "strength 1.0 (paper), w = 3, not subtracted", **PAPER),
    controlcg("paper_off", "strength 1.0, w = 3, not subtracted, injection off", injection_scale=0.0, **PAPER),
    _ilvr(2, 250),
    _ilvr(2, 500),
    _ilvr(4, 250),
    _ilvr(2, 500, ", reconstruction subtracted", subtract_reconstruction=True),
    _inversion(0.25),
    _inversion(0.5),
    _inversion(0.5, w=10.0),
)

#: Exact inversions over their settings, to choose them on another split.
EXACT = tuple(
    _exact(name, label, strength, w)
    for name, label in (("ddpm_inversion", "edit-friendly inversion"), ("direct_inversion", "Direct Inversion"))
    for strength in (0.5, 0.7, 0.9)
    for w in (1.0, 3.0)
)

#: What is nearest to the truth: a few methods with settings chosen on other subjects (study "exact", split val).
NEAREST = tuple(
    next(row for row in (*COMPARED, *EXACT) if row.name == name)
    for name in (
        "controlcg",
        "ilvr_2_500_subtracted",
        "ddim_inversion_500_w_3",
        "ddpm_inversion_70_w_1",
        "ddpm_inversion_70_w_3",
        "direct_inversion_70_w_1",
    )
)

#: These, means over seeds, also of a control that draws noise, and controls. Toward its own class a subtracted method
#: returns the input.
TRUTH = (
    *NEAREST,
    *(expected(row, count) for row in (NEAREST[0], NEAREST[3]) for count in (4, 8)),
    *(toward_own_class(row) for row in (NEAREST[2], NEAREST[3], NEAREST[5])),
    expected(toward_own_class(NEAREST[3]), 4),
    Row("unchanged", "control: unchanged input", {"method": "unchanged"}, control=True),
)

#: All of these, the default's means over seeds, and controls: each toward the input's own class, and doing nothing.
METHODS = (
    *COMPARED,
    *(expected(COMPARED[0], count) for count in (4, 8)),
    *(toward_own_class(row) for row in COMPARED),
    Row("unchanged", "control: unchanged input", {"method": "unchanged"}, control=True),
)


def guidance(
    scales: Sequence[float] = (0, 1, 2, 3, 4, 6), paper_scales: Sequence[float] = (0, 2, 6)
) -> tuple[Row, ...]:
    """Rows of more and more guidance: of the default and, fewer of them, of the paper's way."""
    default = [controlcg(f"w_{w:g}", f"w = {w:g}", w=w) for w in scales]
    paper = [controlcg(f"w_{w:g}_strength_1", f"w = {w:g}, strength 1", w=w, **PAPER) for w in paper_scales]
    return (*default, *paper)


GUIDANCE = guidance()

#: Rows of each study.
STUDIES: dict[str, Sequence[Row]] = {"methods": METHODS, "guidance": GUIDANCE, "truth": TRUTH, "exact": EXACT}
