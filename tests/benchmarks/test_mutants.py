# SPDX-License-Identifier: Apache-2.0
"""The sixty mistakes of the mutation test: each fits the code, changes it, and is put to the tests of its room."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutants import MUTANTS, Mutant, mutate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])
def test_every_mutant_fits_the_code_and_changes_what_it_does(mutant: Mutant) -> None:
    source = (ROOT / "medcf" / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutate(source, mutant))) != ast.dump(ast.parse(source))
    assert (ROOT / mutant.room).is_dir()


def test_the_mutants_are_spread_over_the_rooms() -> None:
    assert len({each.name for each in MUTANTS}) == len(MUTANTS) == 63
    rooms = Counter(each.room.removeprefix("tests/") for each in MUTANTS)
    assert rooms["inference"] + rooms.pop("runtime") == 8
    wanted = {"schedulers": 8, "guidance": 7, "inferers": 14, "sampling": 1, "networks": 5, "data": 7}
    wanted |= {"metrics": 7, "transforms": 6}
    assert rooms - Counter({"inference": rooms["inference"]}) == wanted


@pytest.mark.parametrize("source", ["y = 1\n", "x = 1\nx = 1\n"])
def test_code_that_is_not_there_once_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"worse: 'x = 1' occurs [02] times in medcf/a\.py"):
        mutate(source, Mutant("worse", "a.py", "x = 1", "x = 2"))


@pytest.mark.parametrize(
    ("asserted", "wanted"),
    [("double(0) == 0", "SURVIVED"), ("double(1) == 2", "killed    FAILED tests/room/test_b.py::test_b")],
)
def test_a_mutant_is_put_to_its_mirror_and_to_its_room_in_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asserted: str, wanted: str
) -> None:
    test = "from medcf.room.a import double\ndef test_{}():\n    assert {}\n"
    files = {"medcf/__init__.py": "", "medcf/room/__init__.py": "", "medcf/room/a.py": "double = lambda x: 2 * x\n"}
    files |= {"tests/room/test_a.py": test.format("a", "double(0) == 0")}  # the mirror sees nothing
    for name, text in (files | {"tests/room/test_b.py": test.format("b", asserted)}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "PARTS", ("medcf", "tests"))
    assert mutants.verdict(Mutant("triple", "room/a.py", "2 * x", "3 * x"), timeout=120) == wanted
    assert (tmp_path / "medcf/room/a.py").read_text() == files["medcf/room/a.py"]


def test_tests_that_cannot_run_kill_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import medcf_is_not_here\n")
    with pytest.raises(RuntimeError, match=r"could not run \['test_a\.py'\].*"):
        mutants._run(tmp_path, ["test_a.py"], 120)
