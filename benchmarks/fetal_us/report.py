# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation as a Markdown table, inserted into a page between two markers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["BEGIN", "END", "insert", "table"]

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def table(figures: Mapping[str, Any]) -> str:
    """Format the figures of ``evaluate``: guided counterfactuals next to the same passes without the class gradient."""
    guided, control = figures["counterfactuals"], figures["without_guidance_by_the_class"]
    lines = [
        "| classifiers, on the validation subjects | explained classifier f | judge |",
        "| --- | --- | --- |",
        _row("balanced accuracy (95 % interval)", figures, _accuracy),
        _row("recalled, other planes", figures, lambda f: _of(f["recalled"]["0"])),
        _row("recalled, trans-thalamic planes", figures, lambda f: _of(f["recalled"]["1"])),
        _row("mean P(trans-thalamic) of real ones", figures, lambda f: f"{f['mean_probability_of_real_targets']:.2f}"),
        "",
        "| counterfactuals of the validation's other planes | guided | class scale 0 |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {_cell(guided, path)} | {_cell(control, path)} |"
        for name, path in {
            "inputs": "inputs",
            "f calls the input trans-thalamic already (left out below)": "already_target",
            "flipped": "flipped",
            "flips that survive slight blur": "survival/blur",
            "flips that survive slight noise": "survival/noise",
            "flips that survive both": "survival/all",
            "P(trans-thalamic) by f: input, each pass": "confidence_per_iterate",
            "P(trans-thalamic) by the judge: input, counterfactual": "judge/mean_probability",
            "inputs that the judge calls trans-thalamic": "judge/inputs_called_target",
            "flips that the judge calls trans-thalamic": "judge/flips_called_target",
            "judge's probability rose": "judge/raised",
            "rank-3 re-identification, features of f": "identity/classifier/rank_3",
            "rank-3 re-identification, features of the judge": "identity/judge/rank_3",
            "rank-3 by chance": "identity/judge/chance",
            "cosine to the input, features of f": "identity/classifier/cosine",
            "cosine among strangers, features of f": "identity/classifier/cosine_of_strangers",
            "cosine to the input, features of the judge": "identity/judge/cosine",
            "cosine among strangers, features of the judge": "identity/judge/cosine_of_strangers",
            "Dice of the head, input to counterfactual": "head_dice/mean",
            "lowest Dice of the head": "head_dice/lowest",
            "mean absolute difference (of a range of 2)": "grid_difference",
            "U-Net evaluations per case": "evaluations_per_case",
        }.items()
    ]
    if "out_of_distribution" in figures:
        lines.append(f"| inputs flagged `out_of_distribution` | {_text(figures['out_of_distribution'])} | |")
    lines.append(f"| seconds per input | {figures['seconds_per_input']:.1f} | |")
    return "\n".join(lines) + "\n"


def insert(page: Path, figures: Mapping[str, Any]) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: the page lacks the marks.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}: put them where the figures belong.")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    page.write_text(f"{head}{BEGIN}\n{table(figures)}{END}{tail}", encoding="utf-8")


def _row(name: str, figures: Mapping[str, Any], cell: Any) -> str:
    return f"| {name} | {cell(figures['classifier'])} | {cell(figures['judge'])} |"


def _accuracy(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['balanced_accuracy']:.1%} ({low:.1%} to {high:.1%})".replace("%", " %")


def _of(pair: list[int]) -> str:
    return f"{pair[0]} of {pair[1]}"


def _cell(figures: Mapping[str, Any], path: str) -> str:
    value: Any = figures
    for part in path.split("/"):
        if part not in value:
            return "no case"
        value = value[part]
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        if not value["of"]:
            return "no case"
        low, high = value["interval"]
        text = f"{value['count']} of {value['of']} ({value['share']:.0%}; {low:.0%} to {high:.0%})"
        return text.replace("%", " %")
    if isinstance(value, list):
        return ", ".join(f"{number:.2f}" for number in value)
    return str(value) if isinstance(value, int) else f"{value:.3f}"
