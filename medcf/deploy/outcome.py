# SPDX-License-Identifier: Apache-2.0
"""The output folder of an application: DICOM files and nothing else, and what became of each case in one file."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydicom.filereader import read_file_meta_info

from medcf.data import Case
from medcf.deploy.cases import is_left_out
from medcf.inference import CaseResult, RunFolder
from medcf.inference.summary import end_run
from medcf.runtime.atomic import replace_file, write_json
from medcf.runtime.errors import Failure
from medcf.runtime.owned import NOTICE

__all__ = ["RESULT", "Outcome", "write_error"]

logger = logging.getLogger(__name__)

#: Read by the orchestrator mercure, which archives it and sends the text of ``__mercure_notification``.
RESULT = "result.json"
_NOTIFICATION = "__mercure_notification"
_SCORES = (
    *("label_before", "label_after", "target", "confidence_before", "confidence_after", "flipped", "unchanged"),
    *("out_of_distribution", "seconds"),
)


class Outcome:
    """Collects results and writes them.

    Each case is first written to a run folder in the system's temporary folder, as any other run's, and copied from
    there: the orchestrator takes every file of the output folder for a result.

    Args:
        folder: for the DICOM files and ``result.json``; created if missing.
        title: name of the job.
    """

    def __init__(self, folder: Path, title: str = "medcf") -> None:
        self.folder, self.title = folder, title
        self.cases: list[dict[str, Any]] = []
        self.failures: list[Failure] = []

    @property
    def failed(self) -> list[Failure]:
        """The files that failed for an error; all, if there is no result at all."""
        failed = [failure for failure in self.failures if not is_left_out(failure)]
        return failed if self.cases or failed else self.failures

    def add(self, results: Sequence[CaseResult | Failure]) -> None:
        """Write results: together all frames of a loop, of which the writer also makes one object."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = [result for result in results if isinstance(result, CaseResult)]
        with tempfile.TemporaryDirectory(prefix="medcf-") as temporary:
            run_folder = RunFolder(Path(temporary) / "run")
            run_folder.open([Case(result.case, result.files or (result.path,)) for result in done])
            try:
                taken = [run_folder.take(result) for result in results]
                written = {result.case: result for result in taken if isinstance(result, CaseResult)}
                end_run(run_folder, next((result.writers for result in done), ()))
            finally:
                run_folder.release()
            files = self._deliver(sorted(run_folder.path.rglob("*.dcm")), run_folder.path)
        # a table's failures are not repeated: those of a frame may be many
        self.failures += [each for each in run_folder.failures.values() if each not in self.failures]
        for case, result in written.items():
            if not files.get(case):
                remedy = "Load the bundle with output_format='dicom'."
                self.failures.append(Failure(str(result.path), "write", "no DICOM object was made", remedy))
                continue
            self.cases.append({"case": case, "files": files.pop(case), **_scores(result)})
        for name, more in files.items():
            self.cases.append({"case": name, "files": more})

    def close(self) -> None:
        """Write ``result.json``."""
        write_json(
            self.folder / RESULT,
            {
                "notice": NOTICE,
                "title": self.title,
                "cases": self.cases,
                "failed": _shown(self.failed),
                "left_out": _shown(each for each in self.failures if each not in self.failed),
                _NOTIFICATION: {"text": self.describe()},
            },
        )
        logger.info("%s", self.describe())

    def describe(self) -> str:
        """Say in one line what was done, without any patient's data."""
        scored = [case for case in self.cases if "flipped" in case]
        parts = [f"{len(scored)} explained", f"{sum(map(_is_flipped, scored))} flipped"]
        parts += [f"{sum(bool(case['unchanged']) for case in scored)} already of the target class"]
        parts += [f"{len(self.failed)} failed"] if self.failures else []
        if left := len(self.failures) - len(self.failed):
            parts.append(f"{left} left out")
        reasons = "".join(f" Failed: {reason}." for reason in sorted({each.reason for each in self.failed})[:3])
        return f"{self.title}: {', '.join(parts)}.{reasons} SYNTHETIC images, not for diagnosis."

    def _deliver(self, paths: Iterable[Path], root: Path) -> dict[str, list[str]]:
        """Copy objects to the output folder; return their names by case."""
        files: dict[str, list[str]] = {}
        for path in paths:
            name = f"{read_file_meta_info(path).MediaStorageSOPInstanceUID}.dcm"
            with path.open("rb") as source:
                replace_file(self.folder / name, partial(shutil.copyfileobj, source), binary=True)
            files.setdefault(path.relative_to(root).parts[0], []).append(name)
        return files


def write_error(folder: Path, title: str, text: str) -> None:
    """Write a ``result.json`` that says why nothing was done."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, {"title": title, "error": text, _NOTIFICATION: {"text": f"{title} failed: {text}"}})


def _scores(result: CaseResult) -> dict[str, Any]:
    return {name: result.row[name] for name in _SCORES if name in result.row}


def _is_flipped(case: dict[str, Any]) -> bool:
    return bool(case["flipped"]) and not case["unchanged"]


def _shown(failures: Iterable[Failure]) -> list[dict[str, str]]:
    """Return failures with the names of their files only: folders are often named after patients."""
    return [{**asdict(failure), "file": Path(failure.file).name} for failure in failures]
