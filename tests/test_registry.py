# SPDX-License-Identifier: Apache-2.0
"""Third parties add components by an installed package, and configs use them by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medcf import registry

PLUGIN = '''
"""A method of a third party: the negative image."""
from medcf.registry import METHODS


class Negative:
    def __init__(self, scheduler=None, classifier=None, target=None, strength=1.0):
        self.strength = strength

    def __call__(self, inputs, network):
        return -self.strength * inputs


METHODS.add("negative", "the negative of the image", Negative)
'''
CONFIG = {
    "imports": ["$import torch"],
    "inferer": {"_target_": "medcf.inferers.create_method", "name": "negative", "strength": 2.0},
    "run": ["$print('RESULT', @inferer(torch.ones(1), None).item())"],
}


def build_wheel(folder: Path) -> Path:
    """Write a wheel by hand: a plugin needs no more than a module and its entry point."""
    wheel = folder / "medcf_negative-1.0-py3-none-any.whl"
    info = "medcf_negative-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("medcf_negative.py", PLUGIN)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: medcf-negative\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", "[medcf.plugins]\nnegative = medcf_negative\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.slow
def test_an_installed_plugin_is_used_by_name_from_a_config(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(build_wheel(tmp_path))], check=True)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "config.json"]
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    without = subprocess.run(command, **run)
    assert without.returncode != 0
    assert "'negative' is not one of the registered methods" in without.stderr
    with_plugin = subprocess.run(command, **run, env={**os.environ, "PYTHONPATH": str(site)})
    assert "RESULT -2.0" in with_plugin.stdout, with_plugin.stderr


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'nosuch' is not one of the registered methods: .*"):
        registry.lookup(registry.METHODS, "nosuch")


def test_a_broken_plugin_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint("broken", "no_such_module_anywhere", registry.PLUGIN_GROUP),
        EntryPoint("good", "json", registry.PLUGIN_GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert registry.load_plugins.__wrapped__() == ("good",)
    assert "'broken'" in caplog.text


def test_importing_medcf_loads_nothing_heavy() -> None:
    code = "import sys, medcf; assert not {'torch', 'monai', 'numpy', 'pydicom'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_entry_may_be_text_that_is_imported_on_look_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "medcf_late.py").write_text("def write(case): return [case]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry.WRITERS, "components", {})
    registry.WRITERS.add("late", "a writer that is imported when it is used", "medcf_late:write")
    assert "medcf_late" not in sys.modules
    assert registry.create(registry.WRITERS, "late", case=1) == [1]
    registry.WRITERS.add("missing", "a writer whose extra is not installed", "no_such_module_anywhere:write")
    with pytest.raises(ImportError, match="no_such_module_anywhere"):
        registry.lookup(registry.WRITERS, "missing")
