# SPDX-License-Identifier: Apache-2.0
"""The package under the orchestrator mercure: its folders, its environment, an ordinary user, no network, no home."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

pytest.importorskip("monai.deploy")

from medcf.deploy.package import write_package
from tests.deploy.inputs import FAST, PATIENT, write_inputs

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("setpriv") is None, reason="needs util-linux"),
]
NOBODY = 65534


class Container:
    """What the Dockerfile lays out and mercure starts, without an engine.

    Args:
        root: a folder that any user can search.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.input, self.output = root, root / "data", root / "output"
        for folder in (self.input, self.output, root / "tmp"):
            folder.mkdir()
            folder.chmod(0o777)

    def build(self, bundle: str) -> None:
        """Do what its lines COPY and ENV say."""
        folder = write_package(bundle, self.root / "map")
        lines = (folder / "Dockerfile").read_text(encoding="utf-8")
        for source, target in re.findall(r"^COPY (\S+) (\S+)$", lines, flags=re.MULTILINE):
            to = self.root / "image" / target.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(folder / source, to) if (folder / source).is_dir() else shutil.copy(folder / source, to)
        (block,) = re.findall(r"^ENV (HOLOSCAN.*?[^\\])$", lines, flags=re.MULTILINE | re.DOTALL)
        pairs = (pair.partition("=") for pair in block.replace("\\\n", " ").split())
        self.variables = {name: self._here(value) for name, _, value in pairs}
        subprocess.run(["chmod", "-R", "a+rX", str(self.root)], check=True)

    def _here(self, value: str) -> str:
        return re.sub(r"^/(?=opt|var|etc)", f"{self.root}/image/", value.replace("/tmp/", f"{self.root}/tmp/"))

    def receive(self, bundle: str, settings: dict) -> list[Path]:
        """Fill the input folder as mercure does: each file with its tags, and the task."""
        work = write_inputs(bundle, self.root / "sent")
        for file in sorted(work.iterdir()):
            header = dcmread(file, stop_before_pixels=True)
            name = f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}"
            shutil.move(file, self.input / f"{name}.dcm")
            tags = {"SeriesInstanceUID": str(header.SeriesInstanceUID), "PatientName": str(header.PatientName)}
            (self.input / f"{name}.tags").write_text(json.dumps(tags), encoding="utf-8")
        task = {"id": "task", "process": {"module_name": "medcf", "settings": settings}}
        (self.input / "task.json").write_text(json.dumps(task), encoding="utf-8")
        subprocess.run(["chmod", "-R", "a+rX", str(self.input)], check=True)
        return sorted(self.input.glob("*.dcm"))

    def start(self) -> subprocess.Popen:
        """Run the command of ``/etc/monai/app.json``."""
        command = json.loads((self.root / "image" / "etc" / "monai" / "app.json").read_text())["command"]
        words = ["unshare", "--net", "--map-root-user"]
        if os.geteuid() == 0:
            words = ["unshare", "--net", "--mount", "sh", "-c", reachable(self.root) + 'exec "$@"', "sh"]
            words += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
            words += ["--bounding-set=-all", "--inh-caps=-all"]
        folders = {
            **dict.fromkeys(("MERCURE_IN_DIR", "MONAI_INPUTPATH", "HOLOSCAN_INPUT_PATH"), str(self.input)),
            **dict.fromkeys(("MERCURE_OUT_DIR", "MONAI_OUTPUTPATH", "HOLOSCAN_OUTPUT_PATH"), str(self.output)),
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "TMPDIR": str(self.root / "tmp"), "OMP_NUM_THREADS": "1", **self.variables}
        environment |= folders
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        workdir = self.root / "image" / "var" / "holoscan"
        return subprocess.Popen([*words, *shlex.split(command)], env=environment, cwd=workdir, **streams)

    def run(self) -> tuple[int, str]:
        process = self.start()
        log, _ = process.communicate(timeout=400)
        return process.returncode, log

    def written(self) -> dict[str, bytes]:
        """The objects, by name."""
        return {path.name: path.read_bytes() for path in self.output.glob("*.dcm")}


def reachable(root: Path) -> str:
    """Return shell commands that, for this process alone, let any user reach an interpreter in a closed folder."""
    base = Path(sys.base_prefix).resolve()
    closed = [folder for folder in base.parents if not folder.stat().st_mode & 1]
    if not closed:
        return ""
    old, top = shlex.quote(str(root / "python")), shlex.quote(str(closed[-1]))
    new = shlex.quote(str(base))
    return (
        f"set -e; mkdir -p {old}; mount --bind {new} {old}; mount -t tmpfs -o mode=755 none {top}; "
        f"mkdir -p {new}; mount --bind {old} {new}; "
    )


@pytest.fixture
def container() -> Iterator[Container]:
    # pytest's own folders are closed to other users
    with tempfile.TemporaryDirectory(prefix="medcf-mercure-") as root:
        Path(root).chmod(0o755)
        yield Container(Path(root))


@pytest.mark.parametrize("bundle", FAST)
def test_a_task_gives_objects_and_a_notification(bundle: str, container: Container) -> None:
    container.build(bundle)
    given = container.receive(bundle, {**FAST[bundle], "target": 0, "seed": 5, "allow_synthetic": True})
    before = {path.name: path.read_bytes() for path in container.input.iterdir()}
    status, log = container.run()
    assert status == 0, log
    outcome = json.loads((container.output / "result.json").read_text(encoding="utf-8"))
    assert [case["target"] for case in outcome["cases"]] == [0]
    assert outcome["left_out"] == outcome["failed"] == []
    assert "1 explained" in outcome["__mercure_notification"]["text"]
    names = {path.name for path in container.output.iterdir()}
    assert names == {*container.written(), "result.json"}
    assert len(container.written()) >= len(given)
    for path in container.output.glob("*.dcm"):
        made = dcmread(path, stop_before_pixels=True)
        assert made.SyntheticData == "YES"
        assert path.name == f"{made.SOPInstanceUID}.dcm"
    assert {path.name: path.read_bytes() for path in container.input.iterdir()} == before
    assert PATIENT not in log + json.dumps(outcome)
    assert len(log.splitlines()) <= 3, log  # what was found, what was done; nothing of the SDK's
    assert not list((container.root / "tmp").glob("medcf-*"))


def test_a_damaged_file_fails_the_job_and_the_others_are_written(container: Container) -> None:
    container.build("diffice")
    (given,) = container.receive("diffice", {**FAST["diffice"], "allow_synthetic": True})
    whole = given.read_bytes()
    (container.input / "1.2.3#4.5.6.dcm").write_bytes(whole[: len(whole) // 2])
    status, log = container.run()
    assert status == 1, log
    assert container.written()
    outcome = json.loads((container.output / "result.json").read_text(encoding="utf-8"))
    assert [failure["file"] for failure in outcome["failed"]] == ["1.2.3#4.5.6.dcm"]
    assert "1 failed" in outcome["__mercure_notification"]["text"]


def test_a_killed_job_starts_again(container: Container) -> None:
    container.build("diffice")
    (given,) = container.receive("diffice", {**FAST["diffice"], "allow_synthetic": True, "batch_size": 1})
    for number in range(6):  # frames would be joined in the end; these are pictures of their own
        copy = dcmread(given)
        copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        copy.save_as(container.input / f"1.2#{number}.dcm")
    process = container.start()
    deadline = time.monotonic() + 300
    while not container.written() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = container.written()
    assert first
    assert not (container.output / "result.json").exists()
    for name in first:  # complete, or not there
        made = dcmread(container.output / name)
        assert "PixelData" not in made or made.pixel_array.any()
    status, log = container.run()  # into the same folder: an emptied one is the simpler case
    assert status == 0, log
    again = container.written()
    assert set(first) < set(again)
    assert len(json.loads((container.output / "result.json").read_text())["cases"]) == 7
    assert not [path for path in container.output.iterdir() if path.name.startswith(".")]
