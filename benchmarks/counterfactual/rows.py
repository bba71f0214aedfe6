# SPDX-License-Identifier: Apache-2.0
"""Methods and settings to compare: the rows of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = [
    "ABLATION",
    "FEW_STEPS",
    "MATCHED",
    "METHODS",
    "PAPER_SCHEDULE",
    "REFERENCE",
    "SPEED",
    "Row",
    "ablation",
    "expected",
    "few_steps",
    "select",
    "toward_own_class",
    "unguided",
]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: how the row is called, also the name of its file.
        label: how it reads.
        overrides: ids of the bundle's inference config that it changes.
        control: a row that must come out as what it is.
        repeat: run it with a second seed as well, where seeds are compared.
        toward_own_class: run each image toward its own class, which shows the effect of regeneration alone.
        num_seeds: the mean over so many seeds is the result.
    """

    name: str
    label: str
    overrides: dict[str, Any] = field(default_factory=dict)
    control: bool = False
    repeat: bool = True
    toward_own_class: bool = False
    num_seeds: int = 1


def toward_own_class(row: Row) -> Row:
    """Return the control of a row that regenerates every image in its own class."""
    label = f"control: {row.label}, toward the own class"
    return replace(row, name=f"{row.name}_own", label=label, control=True, repeat=False, toward_own_class=True)


def unguided(row: Row) -> Row:
    """Return the control of a method guided by a classifier that leaves the classifier out."""
    overrides = {**row.overrides, "shared_options#classifier_scales": [0]}
    label = f"control: {row.label}, λ_c = 0"
    return replace(row, name=f"{row.name}_unguided", label=label, overrides=overrides, control=True, repeat=False)


def expected(row: Row, num_seeds: int) -> Row:
    """Return the row of a method's mean over seeds: nearer to the truth than a sample, and blurred."""
    label = f"{row.label}, mean of {num_seeds} seeds"
    return replace(row, name=f"{row.name}_expected_{num_seeds}", label=label, repeat=False, num_seeds=num_seeds)


def _method(name: str, label: str, control: bool = False, repeat: bool = True) -> Row:
    return Row(name, label, {"method": name}, control, repeat and not control)


def _variant(name: str, label: str, **options: Any) -> Row:
    ids = {f"method_options#diffice#{key}": value for key, value in options.items()}
    return Row(f"diffice_{name}", f"Diff-ICE, {label}", {"method": "diffice", **ids}, repeat=False)


#: Options with which Diff-ICE may change the whole image, by the unconditional model, as published.
PLAIN: dict[str, Any] = {"region": None, "class_labels": None}
DIFFICE, SDEDIT = (
    _method("diffice", "Diff-ICE, the bundle's default"),
    _method("sdedit", "SDEdit with CFG", repeat=False),
)
SINGLE = _method("diffice_single", "default, single pass", repeat=False)
#: The default's parts one by one, and the paper's way.
EVERYWHERE = _variant("everywhere", "whole image, unconditional", **PLAIN)
IN_SUBJECT = _variant("subject", "kept to the subject, unconditional", class_labels=None)
PAPER_WAY = _variant(
    "paper", "as published: and 5 passes, no exit", num_iterations=5, confidence_threshold=None, **PLAIN
)
#: φ from a network that f knows nothing of: the first block of the one that recognizes subjects.
OTHER_PHI = Row(
    "diffice_other_phi",
    "default, φ from the identity network",
    {
        "method": "diffice",
        "identity_def": {"_target_": "medcf.networks.identity.IdentityNetwork", "num_parameters": 10},
        "perceptual#extractor": "$load_weights(@identity_def, @models_dir + '/identity.pt', device=@device)",
        "perceptual#layers": "trunk.blocks.0",
    },
    repeat=False,
)
#: Methods that a classifier guides, with the bundle's own options.
GUIDED = (
    DIFFICE,
    SINGLE,
    _method("universal", "x_t gradient", repeat=False),
    _method("dime", "DiME", repeat=False),  # costs as much as all other rows together
    _method("fastdime", "FastDiME", repeat=False),
    EVERYWHERE,
    IN_SUBJECT,
    PAPER_WAY,
    OTHER_PHI,
)
CONDITIONAL = (
    SDEDIT,
    _method("ddpm_inversion", "edit-friendly inversion", repeat=False),
    _method("direct_inversion", "Direct Inversion", repeat=False),
)

#: The table of methods, the means of some over seeds, and controls: two that are no method, the methods toward the
#: input's own class, and the guided ones without their classifier. Unguided, those of one pass are all the same.
METHODS = (
    *GUIDED,
    *CONDITIONAL,
    *(expected(row, count) for row in (DIFFICE,) for count in (4, 8)),
    _method("unchanged", "control: unchanged input", control=True),
    _method("attack", "control: gradient attack", control=True),
    *(toward_own_class(row) for row in (DIFFICE, EVERYWHERE, IN_SUBJECT, *CONDITIONAL, expected(DIFFICE, 4))),
    *(unguided(row) for row in (DIFFICE, EVERYWHERE, expected(DIFFICE, 4))),
)

#: The paper's schedule on the demo networks: tau = 120 of 400, five passes for every image, three scales.
PAPER_SCHEDULE = {
    "shared_options#num_inference_steps": 400,
    "shared_options#strength": 0.3,
    "shared_options#num_iterations": 5,
    "shared_options#confidence_threshold": None,
    "shared_options#batched_scales": False,
    "shared_options#guide_every": 1,
    "amp": False,
    "channels_last": False,
    "compile": False,
    "batch_size": 8,
}

#: The bundle's settings before the options below were chosen; every option is measured against this one.
REFERENCE = {
    **PAPER_SCHEDULE,
    "shared_options#num_inference_steps": 100,
    "shared_options#num_iterations": 3,
    "shared_options#classifier_scales": [30, 60],
    "shared_options#confidence_threshold": 0.95,
}


def _option(name: str, label: str, **overrides: Any) -> Row:
    ids = {key if key in ("amp", "channels_last", "compile", "scheduler") else f"shared_options#{key}": value
           for key, value in overrides.items()}  # fmt: skip
    return Row(name, label, {**REFERENCE, **ids})


DDIM = {
    "_target_": "medcf.schedulers.RespacedDDIMScheduler",
    "num_train_timesteps": 1000,
    "schedule": "linear_beta",
    "prediction_type": "v_prediction",
}

#: The options of speed, each alone against the reference, then together, then the bundle's defaults.
SPEED = (
    Row("paper_schedule", "the paper's schedule: 120 of 400 steps, 5 passes, no exit", PAPER_SCHEDULE),
    Row("reference", "reference: 30 of 100 steps, 3 passes, exit at 0.95", REFERENCE),
    _option("no_exit", "without early exit", confidence_threshold=None),
    _option("one_pass", "one pass", num_iterations=1),
    _option("one_scale", "λ_c = 60 alone", classifier_scales=[60]),
    _option("batched_scales", "scales in one batch", batched_scales=True),
    _option("guide_every_2", "gradient every second step", guide_every=2),
    _option("steps_75", "22 of 75 steps", num_inference_steps=75),
    _option("steps_50", "15 of 50 steps", num_inference_steps=50),
    _option("steps_30", "9 of 30 steps", num_inference_steps=30),
    _option("ddim_25", "DDIM, 8 of 25 steps", scheduler=DDIM, num_inference_steps=25, classifier_scales=[30, 60, 120]),
    _option("strength_20", "τ/n = 0.2, λ_c = 60, 120", strength=0.2, classifier_scales=[60, 120]),
    _option("channels_last", "channels-last", channels_last=True),
    _option("amp", "bfloat16", amp=True),
    _option("amp_channels_last", "bfloat16, channels-last", amp=True, channels_last=True),
    Row("defaults", "the bundle's defaults", {}),
)

#: Where the commands of the page leave the network that was trained further on the ten steps with which it samples.
MATCHED = "output/diffice/matched/model.pt"


def few_steps(
    methods: Sequence[Row] = (DIFFICE, *CONDITIONAL), steps: Sequence[int] = (100, 30, 10)
) -> tuple[Row, ...]:
    """Rows of methods with fewer and fewer steps, and with the fewest by the network trained on these alone."""
    rows = []
    for row in methods:
        for count in steps:
            overrides = {**row.overrides, "shared_options#num_inference_steps": count}
            label = f"{row.label}, of {count} steps"
            rows.append(replace(row, name=f"{row.name}_{count}", label=label, overrides=overrides, repeat=False))
        matched = {**rows[-1].overrides, "weights#model": MATCHED}
        label = f"{rows[-1].label}, trained on these"
        rows.append(replace(rows[-1], name=f"{rows[-1].name}_matched", label=label, overrides=matched))
    return tuple(rows)


FEW_STEPS = few_steps()

STRENGTHS = (0.15, 0.3, 0.5)
SCALES = (10, 30, 100, 300)


def ablation(strengths: Sequence[float] = STRENGTHS, scales: Sequence[float] = SCALES) -> tuple[Row, ...]:
    """Rows of the ablation of the noise level and the guidance (the paper's Fig. 5): one pass, one scale."""
    return tuple(
        Row(
            f"strength_{strength:g}_scale_{scale:g}",
            f"τ/n = {strength:g}, λ_c = {scale:g}",
            {
                **REFERENCE,
                "shared_options#num_iterations": 1,
                "shared_options#strength": strength,
                "shared_options#classifier_scales": [scale],
            },
        )
        for strength in strengths
        for scale in scales
    )


ABLATION = ablation()


def select(rows: Sequence[Row], names: Sequence[str] | None) -> list[Row]:
    """Return the rows of these names, or all.

    Raises:
        ValueError: a name that no row has.
    """
    if not names:
        return list(rows)
    unknown = sorted(set(names) - {row.name for row in rows})
    if unknown:
        known = ", ".join(row.name for row in rows)
        raise ValueError(f"Unknown rows {', '.join(unknown)}: the study has {known}.")
    return [row for row in rows if row.name in names]
