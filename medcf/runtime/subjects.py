# SPDX-License-Identifier: Apache-2.0
"""Which subjects a network was trained on: hashed names beside its weights, so that no validation uses their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medcf.runtime.atomic import write_json

__all__ = ["names_of", "read_subjects", "subject_key", "subjects_of", "write_subjects"]


def subject_key(subject: object) -> str:
    """Hash a subject's name.

    The name cannot be read from it, but whoever guesses a name can recognize it.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> subject_key("patient 7")
        'cb76bf362054adf3'
    """
    return hashlib.sha256(f"medcf subject {subject}".encode()).hexdigest()[:16]


def subjects_of(dataset: Any) -> list[str] | None:
    """Return the hashed names of the subjects of a training set; None if it has none.

    Args:
        dataset: has ``subjects``, as the phantoms' sets have; or is a dataset of MONAI whose items name a ``subject``.
    """
    names = names_of(dataset)
    return sorted({subject_key(name) for name in names}) if names else None


def names_of(dataset: Any) -> list[str]:
    """Return the names of the subjects of a dataset, see `subjects_of`; empty if it has none.

    Phantoms have numbers, as many patients have: theirs are ``"phantom 15"``, so that patient 15 is not taken for one.
    """
    numbers = getattr(dataset, "subjects", None)
    if numbers is not None:
        return sorted({f"phantom {number}" for number in numbers})
    items = getattr(dataset, "data", ())
    return sorted({str(item["subject"]) for item in items if isinstance(item, dict) and "subject" in item})


def write_subjects(weights: str | Path, subjects: Iterable[str] | None) -> None:
    """Write, beside a weights file, whom the network saw; if that is not known, what stood there before is removed."""
    if subjects is None:
        _beside(Path(weights)).unlink(missing_ok=True)
    else:
        write_json(_beside(Path(weights)), {"subjects": sorted(set(subjects))})


def read_subjects(weights: Iterable[str | Path]) -> set[str] | None:
    """Return the hashed names of all subjects that some networks saw; None if one of them does not say."""
    seen: set[str] = set()
    for path in map(_beside, map(Path, weights)):
        if not path.is_file():
            return None
        seen.update(json.loads(path.read_text(encoding="utf-8"))["subjects"])
    return seen


def _beside(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}.subjects.json")
