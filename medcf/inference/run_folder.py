# SPDX-License-Identifier: Apache-2.0
"""A run's output folder: finished work is kept, even after ``kill -9``, and different runs never mix.

Layout::

    output_dir/
      manifest.json     versions, config, options, seeds, hashes of weights and inputs, one entry per session
      <case>/case.json  the case's scores; written atomically and last, it marks the case as done
      scores.csv, failures.csv, summary.json   written when the run ends, from the cases' own records
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from medcf.data import Case
from medcf.inference.case_result import MARKER, CaseResult
from medcf.inference.origins import describe_options, option_origins
from medcf.runtime.atomic import write_csv, write_json
from medcf.runtime.errors import Failure
from medcf.runtime.fingerprint import hash_inputs
from medcf.runtime.manifest import MANIFEST, continue_manifest, describe_session, new_manifest, now, read_manifest
from medcf.runtime.owned import (
    check_output_dir,
    fill_folder,
    lock_folder,
    may_fill,
    remove_files,
    run_of,
    written_files,
)
from medcf.runtime.ranks import rank, run_on_main

__all__ = ["RunFolder"]

logger = logging.getLogger(__name__)

TABLES = ("scores.csv", "failures.csv", "summary.json")


class RunFolder:
    """The output folder of one run, opened before the first case and closed after the last.

    Under torchrun all processes write their cases to it; only the main process opens it, locks it and writes its
    manifest and tables.

    Args:
        output_dir: folder to write to; created if missing.
        config: raw config of the run (`medcf.runtime.fingerprint.running_config`).
        weights: name to path of every weights file that affects the results.
        seed: seed of the run, for the manifest.
        overwrite: True removes files written here by an earlier run, one by one, and starts over.
        overrides: options of the command line, for the manifest.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        weights: Mapping[str, str | Path] | None = None,
        seed: int = 0,
        overwrite: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(output_dir)
        self.config = dict(config or {})
        self.weights = {name: Path(path) for name, path in (weights or {}).items()}
        self.seed = seed
        self.overwrite = overwrite
        self.overrides = dict(overrides or {})
        self.inputs: dict[str, str] = {}
        #: Cases finished by an earlier session, as found by `open`; the same on every process.
        self.finished_before: list[str] = []
        # : Name of this run, the same in all sessions: results of other runs or of `CaseResult.save` do not belong to
        # it.
        self.run = ""
        self.completed = 0
        self.failures: dict[str, Failure] = {}
        self.manifest: dict[str, Any] = {}
        self._finished: set[str] = set()
        self._started = time.perf_counter()
        self._lock: IO[str] | None = None

    def open(self, cases: Sequence[Case], failures: Sequence[Failure] = ()) -> list[str]:
        """Start or continue a run.

        Args:
            cases: in run order.
            failures: files already known to be unusable.

        Returns:
            The cases finished by an earlier session, whose results are kept.

        Raises:
            OSError: if the folder cannot be created or written to.
            ValueError: if the folder is or contains an input, holds someone else's files where results must go, or
                holds results for another config, other weights or other inputs; names the reason.
            RuntimeError: if another run is writing to this folder, or this run's processes see different images.
        """
        self.inputs = {case.id: str(case.path) for case in cases}
        check_output_dir(self.path, {file for case in cases for file in (*case.files, case.mask) if file})
        try:
            self.run, inputs, self.finished_before = run_on_main("open the run folder", lambda: self._open(cases))
        except BaseException:
            self.release()
            raise
        if inputs != self.inputs:
            raise RuntimeError(
                f"Process {rank()} lists other images than the main process; all machines must see the same folders."
            )
        for failure in failures if rank() == 0 else ():
            self.fail(failure)
        return self.finished_before

    def _open(self, cases: Sequence[Case]) -> tuple[str, dict[str, str], list[str]]:
        """Open the folder on the main process; return the run, its images and the finished cases."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or lock_folder(self.path)
        except OSError as error:
            reason = f"cannot be written to ({error.strerror or type(error).__name__})"
            raise OSError(f"{self.path} {reason}; choose another folder with --output_dir.") from error
        new = new_manifest(self.config, self.weights, self.seed, self.inputs, hash_inputs(cases))
        previous = read_manifest(self.path)
        self._expect_free(previous)  # before anything is removed
        if previous is not None and (self.overwrite or not self._has_results(previous)):
            self._remove(previous)  # without results, such as after an invalid option, another run may start
            previous = None
        if previous is not None:
            finished = [case for case in self.inputs if self._is_done(case, previous["run"])]
            continue_manifest(self.path, previous, new, finished)
        self.manifest = previous or new
        self.manifest["options"] = option_origins(self.config)
        if said := describe_options(str(self.config.get("method")), self.manifest["options"]):
            logger.info("%s %s has the value of every option.", said, MANIFEST)
        self.run = self.manifest["run"]
        self.manifest["sessions"].append({**describe_session(), "overrides": self.overrides})
        write_json(self.path / MANIFEST, self.manifest)
        done = self.done()
        if done:
            logger.info("%d of %d cases in %s are already done and are kept.", len(done), len(self.inputs), self.path)
        return self.run, self.inputs, done

    def case_dir(self, case: str) -> Path:
        """Return the folder of a case."""
        return self.path / case

    def done(self) -> list[str]:
        """List the cases of this run whose marker exists, in run order."""
        return [case for case in self.inputs if self._is_done(case, self.run)]

    def take(self, result: CaseResult | Failure) -> CaseResult | Failure:
        """Write a case and mark it as done, or record why this fails; the run continues.

        Args:
            result: outcome of a case; a case that is already done is kept.

        Returns:
            The result, or the `Failure` to write it.
        """
        if isinstance(result, CaseResult) and not self._is_done(result.case, self.run):
            row, started, write_files = dict(result.row), time.perf_counter(), result.write

            def write(folder: Path) -> None:
                write_files(folder)
                row["seconds"] = round(row.get("seconds", 0.0) + time.perf_counter() - started, 3)

            try:
                self.complete(result.case, row, write)
            except Exception as error:
                result = Failure(str(result.path), "write", *_reason(error))
        if isinstance(result, Failure):
            self.fail(result)
        return result

    def complete(
        self, case: str, row: Mapping[str, Any], write: Callable[[Path], object] = lambda folder: None
    ) -> None:
        """Let a function write a case's files, then mark it as done; someone else's files in its folder stay.

        Args:
            case: case id.
            row: its scores, only JSON values; read after the files are written.
            write: called with an empty folder to write to.

        Raises:
            FileExistsError: if someone else's file is in the way.
        """
        fill_folder(self.case_dir(case), write, more=(MARKER,), run=self.run)
        write_json(self.case_dir(case) / MARKER, dict(row))
        self.completed += 1

    def fail(self, failure: Failure) -> None:
        """Record that a file gave no counterfactual; the run continues."""
        if self.failures.setdefault(_failure_key(failure), failure) is failure:
            logger.warning("%s failed (%s): %s", Path(failure.file).name, failure.stage, failure.reason)

    def shard(self) -> dict[str, Any]:
        """Return what the main process needs from this process: the number of finished cases, and the failures."""
        return {"completed": self.completed, "failures": [asdict(failure) for failure in self.failures.values()]}

    def merge(self, shards: Sequence[Mapping[str, Any]], patience: float = 90.0) -> None:
        """Merge the results of the other processes.

        Args:
            shards: result of `shard` on each of them.
            patience: seconds for a network file system to show files written by another machine.

        Raises:
            RuntimeError: if cases are missing that another process completed.
        """
        for failure in (Failure(**record) for shard in shards for record in shard["failures"]):
            self.failures.setdefault(_failure_key(failure), failure)
        expected = len(self.finished_before) + self.completed + sum(shard["completed"] for shard in shards)
        deadline = time.monotonic() + patience
        while shards and len(self.done()) < expected:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.path} shows {len(self.done())} of {expected} done cases; all machines must write to the "
                    "same folder. Start the same command again; finished work is kept."
                )
            time.sleep(0.5)

    def rows(self) -> list[dict[str, Any]]:
        """Return the scores of all finished cases, in run order, including those whose images no longer exist."""
        done = [case for case in self.manifest["inputs"] if self._is_done(case, self.run)]
        return [json.loads((self.case_dir(case) / MARKER).read_text(encoding="utf-8")) for case in done]

    def add_folders(self, names: Sequence[str]) -> None:
        """Remember folders of the run beside those of its cases, so that `overwrite` clears them, too."""
        self.manifest["folders"] = sorted({*self.manifest.get("folders", ()), *names})

    def close(self, summary: Mapping[str, Any]) -> None:
        """Write the tables of the run.

        Args:
            summary: content of ``summary.json``.
        """
        taken = [name for name in TABLES if (self.path / name).exists() and name not in self.manifest["tables"]]
        if taken:
            raise FileExistsError(
                f"{self.path / taken[0]} is in the way and was not made by medcf: move it, and start again."
            )
        self.manifest["tables"] = list(TABLES)
        write_json(self.path / MANIFEST, self.manifest)
        rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in self.rows()]
        write_csv(self.path / "scores.csv", rows)
        failed = [asdict(self.failures[key]) for key in sorted(self.failures)]
        write_csv(self.path / "failures.csv", failed, columns=("file", "stage", "reason", "remedy"))
        write_json(self.path / "summary.json", dict(summary))
        self.manifest["failed"] = sorted({failure.file for failure in self.failures.values()})
        self.manifest["sessions"][-1]["finished"] = now()
        self.manifest["sessions"][-1]["seconds"] = round(self.seconds(), 1)
        write_json(self.path / MANIFEST, self.manifest)
        self.release()

    def release(self) -> None:
        """Let other processes write to the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def seconds(self) -> float:
        """Return the seconds since this object was created."""
        return time.perf_counter() - self._started

    def _is_done(self, case: str, run: str) -> bool:
        """Tell whether a case was finished by a run, and all its files still exist."""
        folder = self.case_dir(case)
        if case in self._finished:
            return True
        if not (folder / MARKER).is_file() or run_of(folder) != run:
            return False
        if missing := [name for name in written_files(folder) if not _holds_anything(folder / name)]:
            logger.warning("%s is missing or empty; the case is recomputed.", folder / missing[0])
            return False
        try:
            row = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        except ValueError:
            row = None
        if not isinstance(row, dict) or row.get("case") != case:
            logger.warning("%s is damaged; the case is recomputed.", folder / MARKER)
            return False
        self._finished.add(case)
        return True

    def _has_results(self, manifest: Mapping[str, Any]) -> bool:
        """Tell whether any case of an earlier run is done."""
        return any(self._is_done(case, manifest["run"]) for case in manifest["inputs"])

    def _expect_free(self, previous: Mapping[str, Any] | None) -> None:
        """Refuse to write where someone else has files.

        Raises:
            ValueError: if a table or a case's folder exists that no medcf run wrote.
        """
        ours = {MANIFEST, *previous["tables"]} if previous is not None else set()
        taken = [self.path / name for name in (*TABLES, MANIFEST) if (self.path / name).exists() and name not in ours]
        run = None if previous is None else previous["run"]
        for folder in map(self.case_dir, self.inputs):
            others = (folder / MARKER).is_file() and run_of(folder) != run and not self.overwrite
            if others or not may_fill(folder):
                taken.append(folder)
        if taken:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise ValueError(
                f"{taken[0]}{more} would be overwritten, and this run did not write it. Choose another folder with "
                "--output_dir; results that medcf saved there are replaced with --overwrite true."
            )

    def _remove(self, manifest: Mapping[str, Any]) -> None:
        """Remove files written by an earlier run: those listed in its records, one by one, and its tables."""
        for case in map(str, [*manifest["inputs"], *manifest.get("folders", ())]):
            plain = Path(case).name == case and case not in ("", ".", "..")  # the manifest may have been edited
            if plain and (self.overwrite or run_of(self.case_dir(case)) == manifest["run"]):
                remove_files(self.case_dir(case))
        for name in (MANIFEST, *(name for name in TABLES if name in manifest["tables"])):
            (self.path / name).unlink(missing_ok=True)


def _holds_anything(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _failure_key(failure: Failure) -> str:
    return f"{failure.file}\0{failure.reason}"


def _reason(error: Exception) -> tuple[str, str]:
    """Explain why a case could not be written, and what to do."""
    if isinstance(error, OSError):
        return str(error), "Free some space, or choose another --output_dir, and start the same command again."
    logger.debug("writing failed", exc_info=error)
    first_line = (str(error).splitlines() or [""])[0][:200]
    return f"cannot be written ({type(error).__name__}: {first_line})", "Disable the writer, or report the problem."
