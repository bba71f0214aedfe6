# SPDX-License-Identifier: Apache-2.0
"""Which methods and settings are compared on brains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.counterfactual.rows import Row

__all__ = ["GUIDANCE", "METHODS", "STUDIES", "guidance"]


def _controlcg(name: str, label: str, **options: Any) -> Row:
    """A row of ControlCG with some of its options changed."""
    ids = {f"method_options#controlcg#{key}": value for key, value in options.items()}
    return Row(name, label, {"method": "controlcg", **ids})


def _ilvr(factor: int, stop: int) -> Row:
    options = {"method_options#ilvr#downsample_factor": factor, "method_options#ilvr#stop_timestep": stop}
    return Row(f"ilvr_{factor}_{stop}", f"ILVR, n = {factor}, T = {stop}", {"method": "ilvr", **options})


def _inversion(depth: float) -> Row:
    options = {"method_options#ddim_inversion#depth": depth, "num_inference_steps": 50}  # fewer come back elsewhere
    label = f"DDIM inversion, {1000 * depth:g} of 1000"
    return Row(f"ddim_inversion_{1000 * depth:g}", label, {"method": "ddim_inversion", **options})


_EARLIER: dict[str, Any] = {"guidance_scale": 3.0}  # w of all rows but the default's own

#: The default, the paper's setting, each with injection on and off, in-between strengths, and the paper's baselines.
METHODS = (
    Row("controlcg", "ControlCG, the bundle's default (strength 0.4, w = 8)", {"method": "controlcg"}),
    _controlcg("controlcg_off", "default, injection off", injection_scale=0.0),
    _controlcg("same_reference", "default, reference of the target class", reference_condition="same"),
    _controlcg("strength_50", "strength 0.5, w = 3", strength=0.5, **_EARLIER),
    _controlcg("strength_75", "strength 0.75, w = 3", strength=0.75, **_EARLIER),
    _controlcg("paper", "strength 1.0 (paper), w = 3", strength=1.0, reference_condition="same", **_EARLIER),
    _controlcg("paper_off", "strength 1.0, w = 3, injection off", strength=1.0, injection_scale=0.0, **_EARLIER),
    _ilvr(2, 250),
    _ilvr(2, 500),
    _ilvr(4, 250),
    _inversion(0.25),
    _inversion(0.5),
    Row("unchanged", "control: unchanged input", {"method": "unchanged"}, control=True),
)


def guidance(
    scales: Sequence[float] = (0, 2, 4, 6, 8, 12), paper_scales: Sequence[float] = (0, 2, 6)
) -> tuple[Row, ...]:
    """Rows of more and more guidance, at the default's strength and, fewer of them, at the paper's."""
    at_default = [_controlcg(f"w_{w:g}", f"w = {w:g}", guidance_scale=w) for w in scales]
    at_one = [
        _controlcg(f"w_{w:g}_strength_1", f"w = {w:g}, strength 1", guidance_scale=w, strength=1.0)
        for w in paper_scales
    ]
    return (*at_default, *at_one)


GUIDANCE = guidance()

#: Rows of each study.
STUDIES: dict[str, Sequence[Row]] = {"methods": METHODS, "guidance": GUIDANCE}
