# SPDX-License-Identifier: Apache-2.0
"""A default job killed at random moments equals an uninterrupted one: ``python -m benchmarks.killed``.

Runs ``inference.json`` of a bundle on its demo twice, once in one go and once killed (SIGKILL) again and again, each
time somewhere between its start and a fifth of its work, and compares every file of the two folders: images by their
values, pictures and tables by their bytes, except times and paths.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medcf.runtime.owned import RECORD

__all__ = ["differences"]

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "file")


def start(bundle: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the job in the background."""
    config = ROOT / "bundles" / bundle / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), "--output_dir", str(folder)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


def differences(one: Path, other: Path) -> list[str]:
    """Name the files in which two runs differ."""
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (one, other)]
    if names[0] != names[1]:
        return sorted(set(names[0]) ^ set(names[1]))
    return [name for name in names[0] if (one / name).is_file() and not _equal(one / name, other / name)]


def _equal(one: Path, other: Path) -> bool:
    if one.name in ("manifest.json", "summary.json", "case.json", ".lock"):
        return True  # times, sessions; scores.csv has the cases' scores
    if one.name == RECORD:  # the run's own name apart
        records = [json.loads(path.read_text(encoding="utf-8")) for path in (one, other)]
        return records[0] == records[1] | {"run": records[0]["run"]}
    if one.name == "scores.csv":
        tables = [list(csv.DictReader(path.open(encoding="utf-8"))) for path in (one, other)]
        plain = [[{k: v for k, v in row.items() if k not in TIMES} for row in table] for table in tables]
        return plain[0] == plain[1]
    if one.name.endswith(".nii.gz"):
        return np.array_equal(*(np.asarray(nib.load(path).dataobj) for path in (one, other)))
    return one.read_bytes() == other.read_bytes()


def main() -> int:
    """Print what differs; the exit status is the number of files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.killed", description=__doc__)
    parser.add_argument("--bundle", choices=("diffice", "controlcg"), default="diffice")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moment = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        began = time.monotonic()
        job = start(options.bundle, whole)
        while job.poll() is None and not list(whole.glob("*/case.json")):
            time.sleep(0.1)
        first = time.monotonic() - began
        status = job.wait()
        seconds = time.monotonic() - began
        kills = jobs = done = 0
        found: list[str] = []
        while kills < options.kills:  # a job that ends too early is followed by another one
            killed, jobs, ended = Path(folder) / f"killed{jobs}", jobs + 1, False
            while kills < options.kills and not ended:
                job = start(options.bundle, killed)
                try:
                    job.wait(moment.uniform(0.5 * first, first + (seconds - first) / 5))
                    ended = True
                except subprocess.TimeoutExpired:
                    job.send_signal(signal.SIGKILL)
                    job.wait()
                    kills += 1
            last = start(options.bundle, killed).wait()
            found += differences(whole, killed)
            done += len(list(killed.glob("*/case.json")))
    sys.stdout.write(
        f"{options.bundle}: {seconds:.0f} s in one go (status {status}); killed {kills} times in {jobs} jobs, "
        f"then status {last}; {done} cases, {len(found)} files differ{': ' if found else ''}{', '.join(found)}\n"
    )
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
