# SPDX-License-Identifier: Apache-2.0
"""Methods, settings and wordings compared on chests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.counterfactual.rows import Row, toward_own_class
from medcf.phantoms import ChestState

__all__ = [
    "CARDIOMEGALY",
    "CONTROLS",
    "HEALTHY_SWEEP",
    "INDUCTION_SWEEP",
    "METHODS",
    "PLAIN",
    "SOLVERS",
    "WORDINGS",
    "Wording",
    "induce",
    "solver",
]

STRENGTHS, GUIDANCES = (0.55, 0.7, 0.9), (1.0, 3.0, 4.0, 7.5)
#: Options with which what is generated is the result.
PLAIN: dict[str, Any] = {"method_options#sdedit#subtract_reconstruction": False}


def _sdedit(name: str, label: str, **overrides: Any) -> Row:
    return Row(name, label, {"method": "sdedit", **overrides})


INVERSION = Row("ddim_inversion", "DDIM inversion, the bundle's default", {"method": "ddim_inversion"})
SUBTRACTED = _sdedit("sdedit_subtracted", "SDEdit, own prompt subtracted")
REGENERATED = _sdedit("sdedit_plain", "SDEdit, plain (the paper's way)", **PLAIN)

#: Methods that look for the healthy counterpart.
METHODS = (
    INVERSION,
    REGENERATED,
    SUBTRACTED,
    Row("direct_inversion", "Direct Inversion", {"method": "direct_inversion"}),
    Row("ddpm_inversion", "edit-friendly inversion", {"method": "ddpm_inversion"}),
    Row("diffice", "Diff-ICE, f through the decoder", {"method": "diffice"}),
)
#: Regeneration by the own prompt, the inversion in its own class, an attack on f, and nothing.
CONTROLS = (
    toward_own_class(REGENERATED),
    toward_own_class(INVERSION),
    Row("attack", "control: gradient attack on f", {"method": "attack"}, control=True),
    Row("unchanged", "control: unchanged input", {"method": "unchanged"}, control=True),
)


def solver(name: str, steps: int) -> Row:
    """Return plain SDEdit with a solver by name and its number of steps."""
    scheduler = {
        "_target_": "medcf.schedulers.create_scheduler",
        "name": name,
        "num_train_timesteps": 1000,
        "schedule": "linear_beta",
        "prediction_type": "@prediction_type",
    }
    label = f"{ {'pndm': 'PNDM', 'unipc': 'UniPC', 'dpmpp': 'DPM++', 'ddim': 'DDIM'}[name] }, {steps} steps"
    return _sdedit(f"{name}_{steps}", label, scheduler=scheduler, num_inference_steps=steps, **PLAIN)


#: The paper's solver and cheaper ones: name and number of steps.
SOLVERS = (("pndm", 75), ("unipc", 20), ("unipc", 10), ("dpmpp", 20), ("dpmpp", 10), ("ddim", 20), ("ddim", 10))


@dataclass(frozen=True)
class Wording:
    """What a prompt asks for, and how much of it is known.

    Attributes:
        prompt: the text.
        state: a state that it describes; its label is what the judge should see.
        share: one in so many of the cases is run.
        held_out: whether no training caption has this wording.
    """

    prompt: str
    state: ChestState
    share: int = 1
    held_out: bool = False

    @property
    def name(self) -> str:
        """Name for files."""
        return re.sub(r"\W+", "_", self.prompt.lower())


def _opacity(side: Any, lobe: Any = None, extent: float = 0.75) -> ChestState:
    return ChestState("lung_opacity", side, lobe, extent, 0.7)


#: The wordings of the induction: sides and sizes, lobes, diseases, and wordings that no training caption has.
WORDINGS = (
    *(Wording(f"large lung opacity on the {side}", _opacity(side)) for side in ("left", "right")),
    *(Wording(f"small lung opacity on the {side}", _opacity(side, extent=0.25), 2) for side in ("left", "right")),
    *(
        Wording(f"large lung opacity in the {side} {lobe} lobe", _opacity(side, lobe), 4)
        for side in ("left", "right")
        for lobe in ("upper", "lower")
    ),
    Wording("lung opacity", _opacity("both"), 2),
    Wording("covid-19 pneumonia", ChestState("covid"), 2),
    Wording("viral pneumonia", ChestState("viral_pneumonia"), 2),
    *(Wording(f"large consolidation on the {side}", _opacity(side), 4, True) for side in ("left", "right")),
    Wording("lungs with covid-19", ChestState("covid"), 4, True),
    Wording("lungs with viral pneumonia", ChestState("viral_pneumonia"), 4, True),
)


def induce(prompt: str, *, plain: bool = False, name: str = "", **overrides: Any) -> Row:
    """Return the row that puts a finding into normal chests: SDEdit, minus the result for the own prompt or plain.

    Args:
        prompt: what to put in.
        plain: keep what is generated.
        name: of the row; by default it follows from the prompt.
        overrides: further ids of the inference config.
    """
    name = name or re.sub(r"\W+", "_", prompt.lower()) + ("_plain" if plain else "")
    return _sdedit(f"induce_{name}", prompt, prompt=prompt, **(PLAIN if plain else {}), **overrides)


def _settings(option: str, strength: float, guidance: float) -> dict[str, Any]:
    return {f"method_options#{option}": strength, "guidance_scale": guidance}


#: Strength and guidance of the induction, each with both sides, and of the inversion.
INDUCTION_SWEEP = tuple((strength, guidance) for strength in STRENGTHS for guidance in GUIDANCES)
HEALTHY_SWEEP = tuple(
    Row(
        f"ddim_inversion_{strength:g}_{guidance:g}",
        f"strength {strength:g}, guidance {guidance:g}",
        {"method": "ddim_inversion", **_settings("ddim_inversion#depth", strength, guidance)},
    )
    for strength, guidance in INDUCTION_SWEEP
)
#: A word that no caption has, and what the method makes of it: by default, plain, and at the paper's extreme.
CARDIOMEGALY = (
    induce("cardiomegaly"),
    induce("cardiomegaly", plain=True),
    induce("cardiomegaly", name="cardiomegaly_extreme", guidance_scale=7.5,
           **{"method_options#sdedit#strength": 0.9}),
    induce("chest x-ray with cardiomegaly"),
)  # fmt: skip
