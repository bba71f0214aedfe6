# SPDX-License-Identifier: Apache-2.0
"""The inputs of a run: the user's images, or phantoms if none are given."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medcf.data import Case, find_cases
from medcf.data.case import file_name
from medcf.phantoms import write_phantoms
from medcf.runtime.errors import Failure
from medcf.runtime.manifest import MANIFEST
from medcf.runtime.owned import (
    DEMO_FOLDER,
    DEMO_TRUTH,
    RECORD,
    check_output_dir,
    fill_folder,
    is_ours,
    remove_files,
    written_files,
)
from medcf.runtime.ranks import run_on_main

__all__ = ["CaseList", "list_cases"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseList:
    """The images of a run: its cases, and the files that cannot be used."""

    cases: list[Case]
    failures: list[Failure] = field(default_factory=list)


def list_cases(
    dataset_dir: str | Path | None,
    datalist: str | Path | None,
    output_dir: str | Path,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> CaseList:
    """List the images in a folder or table; without either, write demo phantoms and list those.

    Args:
        dataset_dir: folder of images, searched recursively.
        datalist: CSV or JSON table, see `medcf.data.find_cases`.
        output_dir: folder of the run. It is excluded from ``dataset_dir``. The phantoms go to its ``demo_inputs``:
            subjects unseen in training, in formats and geometries of real scanners; their truth (the same subjects in
            the other class) goes to ``demo_truth``.
        options: options of `medcf.data.find_cases` (``spatial_dims``, ``frame``, ``split``, ...); ``phantom``, the name
            of the demo phantom; ``demo_count``; and options of `medcf.phantoms.write_phantoms` with the prefix
            ``demo_``.
        more: further options, which take precedence.

    Raises:
        FileNotFoundError: if the folder or the table does not exist.
        ValueError: if there is nothing to read, or ``output_dir`` could affect the inputs.
    """
    folder, every = Path(output_dir), {**(options or {}), **more}
    demo = {name.removeprefix("demo_"): every.pop(name) for name in list(every) if name.startswith("demo_")}
    phantom = every.pop("phantom", "fetal_head")
    if dataset_dir is None and datalist is None:
        written = run_on_main("write phantoms", lambda: _write_demo(folder, phantom, demo.pop("count", 16), demo))
        cases, failures = find_cases(written, **every)
        asked = [replace(case, columns={**case.columns, "allow_synthetic": True}) for case in cases]
        return CaseList(asked, failures)
    if datalist is None:
        check_output_dir(folder, [dataset_dir or ""])
    cases, failures = find_cases(dataset_dir, datalist, exclude=[folder], **every)
    return CaseList(_with_known_ids(cases, folder), failures)


def _with_known_ids(cases: list[Case], output_dir: Path) -> list[Case]:
    """Keep the ids under which an earlier session of the run knows its images, even if new files have the same name."""
    manifest = output_dir / MANIFEST
    try:
        inputs = json.loads(manifest.read_text(encoding="utf-8"))["inputs"] if is_ours(manifest) else {}
        known = {str(entry["path"]): str(case) for case, entry in inputs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return cases  # the run folder says what is wrong with it
    paths, taken = Counter(str(case.path) for case in cases), {case.id for case in cases}
    kept = []
    for case in cases:
        name = known.get(str(case.path), case.id)
        fits = paths[str(case.path)] == 1 and name not in taken and file_name(name) == name
        kept.append(replace(case, id=name) if fits else case)
    return kept


def _write_demo(output_dir: Path, phantom: str, count: int, options: dict[str, Any]) -> Path:
    """Write the demo's inputs and their truth, unless they are complete; return the folder of the inputs.

    Raises:
        FileExistsError: if someone else's file is in the way.
    """
    inputs, truth = output_dir / DEMO_FOLDER, output_dir / DEMO_TRUTH
    names = written_files(inputs)
    foreign = {path.name for path in inputs.iterdir()} - {RECORD, *names} if inputs.is_dir() else set()
    if foreign:
        raise FileExistsError(
            f"{inputs} holds {min(foreign)}, which is not part of the demo: choose another --output_dir."
        )
    if len(names) != count or not all((inputs / name).is_file() for name in names):
        logger.info("No --dataset_dir: writing %d phantoms to %s", count, inputs)
        remove_files(inputs)

        def write(folder: Path) -> None:
            fill_folder(inputs, lambda part: write_phantoms(phantom, part, count, truth_dir=folder, **options))

        fill_folder(truth, write)
    return inputs
